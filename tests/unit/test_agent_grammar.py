"""Grammars over a byte tokenizer, and the constraint that follows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.engine.constraint import Constraint, ThoughtTokens
from agent.engine.grammar import Grammar, GrammarBroken, GrammarInvalid, Grammars
from agent.engine.job import Tool, Toolbox
from agent.testing.tiny_model import build_reciting_model

COUNT = Tool("count", "", {"type": "object", "properties": {}, "additionalProperties": False})
LOOK = Tool("look", "", {"properties": {"at": {"enum": ["sky"]}}, "required": ["at"], "additionalProperties": False})


class Tokens:
    """A tokenizer of single bytes, with a few longer tokens."""

    def __init__(self, folder: Path, *special: str) -> None:
        build_reciting_model(folder, [b"<think>", b"</think>", b"<tool_call>", b"</tool_call>"])
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        self.ids: dict[str, int] = dict(tokenizer["model"]["vocab"])
        for content in special:
            entry = {"id": self.ids[content], "content": content, "special": True}
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            tokenizer["added_tokens"].append(entry | flags)
        self.end: int = next(each["id"] for each in tokenizer["added_tokens"] if each["content"] == "<|end|>")
        self.grammars = Grammars(json.dumps(tokenizer), [self.end])

    def allows(self, place: Grammar | Constraint, token: int) -> bool:
        allowed = place.allowed()
        return allowed is None or bool(allowed[token // 8] >> token % 8 & 1)

    def follow(self, place: Grammar | Constraint, text: str) -> bool:
        """Whether the text is allowed, byte for byte."""
        for byte in text.encode():
            token = self.ids[chr(byte) if byte not in b" \n" else {32: "Ġ", 10: "Ċ"}[byte]]
            if not self.allows(place, token):
                return False
            place.take(token)
        return True


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "plain")


def test_a_schema_allows_what_obeys_it_and_ends_only_there(tokens: Tokens) -> None:
    grammar = tokens.grammars.for_schema('{"enum": ["red", "redder"]}')
    assert not tokens.allows(grammar, tokens.end)
    fork = grammar.fork()
    assert not tokens.follow(grammar.fork(), '"blue"')
    assert tokens.follow(fork, '"red"')
    assert tokens.allows(fork, tokens.end)
    assert tokens.follow(grammar, '"redder"')


def test_white_space_between_the_parts_of_json_is_bounded(tokens: Tokens) -> None:
    grammars = (
        tokens.grammars.for_schema('{"type": "object", "x-guidance": {"whitespace_pattern": " +"}}'),
        tokens.grammars.for_calls(Toolbox((LOOK,), ("look",))),
    )
    for grammar, begin in zip(grammars, ("{", '<tool_call>\n{"name": "look", "arguments": {'), strict=True):
        assert tokens.follow(grammar, begin + " " * 32)
        assert not tokens.follow(grammar, " ")


def test_a_token_that_was_not_allowed_breaks_the_grammar(tokens: Tokens) -> None:
    grammar = tokens.grammars.for_schema('{"enum": ["red"]}')
    with pytest.raises(GrammarBroken):
        grammar.take(tokens.ids["x"])
    with pytest.raises(GrammarBroken):
        grammar.allowed()


@pytest.mark.parametrize("schema", ['{"type": "secret-word"}', "{", '{"$ref": "#/nowhere"}'])
def test_an_invalid_schema_is_not_quoted(tokens: Tokens, schema: str) -> None:
    with pytest.raises(GrammarInvalid) as caught:
        tokens.grammars.for_schema(schema)
    assert (str(caught.value), caught.value.__cause__) == ("", None)


@pytest.mark.parametrize(
    ("toolbox", "text", "allowed"),
    [
        (Toolbox((COUNT, LOOK), ("count",)), '{"name": "count", "arguments": {}}', True),
        (Toolbox((COUNT, LOOK), ("count",)), '{"name": "look"', False),
        (Toolbox((COUNT, LOOK), ("count", "look")), '{"name": "look", "arguments": {"at": "sky"}}', True),
        (Toolbox((COUNT, LOOK), ("count", "look")), '{"name": "look", "arguments": {"at": "sea"', False),
        (Toolbox((Tool("any", "", {}),), ("any",)), '{"name": "any", "arguments": {"a": [1]}}', True),
        (Toolbox((Tool("any", "", {}),), ("any",)), '{"name": "any", "arguments": [', False),
    ],
)
def test_required_calls_are_held_to_names_and_parameters(
    tokens: Tokens, toolbox: Toolbox, text: str, allowed: bool
) -> None:
    grammar = tokens.grammars.for_calls(toolbox)
    assert not tokens.follow(grammar.fork(), "I think")
    assert tokens.follow(grammar, f"<tool_call>\n{text}") == allowed
    if allowed:
        assert not tokens.allows(grammar, tokens.end)
        assert tokens.follow(grammar, "\n</tool_call>")
        assert tokens.allows(grammar, tokens.end)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_second_call_needs_leave(tokens: Tokens, parallel: bool) -> None:
    grammar = tokens.grammars.for_calls(Toolbox((COUNT,), ("count",), parallel))
    assert tokens.follow(grammar, '<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call>')
    assert tokens.follow(grammar, "\n<tool_call>\n") == parallel


def test_tags_that_are_special_tokens_are_named_by_themselves(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "special", "<tool_call>", "</tool_call>")
    grammar = tokens.grammars.for_calls(Toolbox((COUNT,), ("count",)))
    assert tokens.allows(grammar, tokens.ids["<tool_call>"])
    assert not tokens.follow(grammar.fork(), "<")
    grammar.take(tokens.ids["<tool_call>"])
    assert tokens.follow(grammar, '\n{"name": "count", "arguments": {}}\n')
    grammar.take(tokens.ids["</tool_call>"])
    assert tokens.allows(grammar, tokens.end)


def test_tokens_are_told_as_bytes(tokens: Tokens) -> None:
    assert tokens.grammars.token_bytes(tokens.ids["<think>"]) == b"<think>"
    assert tokens.grammars.token_bytes(tokens.ids["Ã"]) == b"\xc3"
    assert tokens.grammars.token_bytes(10**6) == b""


class TestConstraint:
    def thoughts(self, tokens: Tokens) -> ThoughtTokens:
        return ThoughtTokens(tokens.ids["<think>"], (tokens.ids["</think>"],))

    def constraint(self, tokens: Tokens, **members: Any) -> Constraint:
        return Constraint(tokens.grammars.for_schema('{"enum": ["red"]}'), self.thoughts(tokens), **members)

    def test_a_thought_may_come_first_and_only_there(self, tokens: Tokens) -> None:
        constraint = self.constraint(tokens)
        assert tokens.allows(constraint, tokens.ids["<think>"])
        assert not tokens.allows(constraint, tokens.ids["x"])
        constraint.take(tokens.ids["<think>"])
        assert constraint.allowed() is None
        assert tokens.follow(constraint, "anything")
        constraint.take(tokens.ids["</think>"])
        assert not tokens.allows(constraint, tokens.ids["<think>"])
        assert tokens.follow(constraint, '"red"')

    def test_an_answer_without_a_thought_begins_at_once(self, tokens: Tokens) -> None:
        constraint = self.constraint(tokens)
        assert tokens.follow(constraint, '"re')
        assert not tokens.allows(constraint, tokens.ids["<think>"])

    def test_a_thought_that_is_open_or_unwanted(self, tokens: Tokens) -> None:
        assert self.constraint(tokens, opened=True).allowed() is None
        assert not tokens.allows(self.constraint(tokens, may_think=False), tokens.ids["<think>"])

    def test_a_model_that_does_not_think_is_held_at_once(self, tokens: Tokens) -> None:
        constraint = Constraint(tokens.grammars.for_schema('{"enum": ["red"]}'), None, opened=True)
        assert tokens.follow(constraint, '"red"')
