"""Constrains answers to JSON schemas and tool calls while they are decoded, with ``llguidance``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from agent.engine.job import Tool, Toolbox
from agent.engine.tool_forms import JSON_FORM

# JSON allows any white space between its parts, and some models write it for ever.
_OPTIONS: Any = {"whitespace_pattern": r"[ \t\n\r]{1,32}"}

# A parser's own messages quote the schema.
_LIMITS = LLParserLimits(verbose_errors=False)


class GrammarInvalid(ValueError):
    """The schema does not compile. Carries nothing of it."""


class GrammarBroken(RuntimeError):
    """The grammar became too complex, or a token came that it had not allowed."""


class Grammar:
    """One choice's place in a grammar. Belongs to one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fork(self) -> Grammar:
        """Another one at the same place."""
        return Grammar(self._matcher.deep_copy())

    def take(self, token: int) -> None:
        """Go on by one token. Raises GrammarBroken."""
        if not self._matcher.consume_token(token):
            raise GrammarBroken()

    def allowed(self) -> bytes:
        """One bit for each token that may come next, the lowest bit of each byte first; the end token is among them
        only where the grammar may end. Raises GrammarBroken."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise GrammarBroken()
        return mask


class Grammars:
    """Compiles grammars for one tokenizer. Any thread may use it."""

    def __init__(self, tokenizer_json: str, end_tokens: Sequence[int]) -> None:
        """``tokenizer_json`` is the text of a ``tokenizer.json``. Takes about a second for a large vocabulary."""
        self._tokenizer = LLTokenizer(tokenizer_json, eos_token=list(end_tokens))

    def token_bytes(self, token: int) -> bytes:
        """What the token stands for; a character may be cut across several."""
        return self._tokenizer.decode_bytes([token]) if token < self._tokenizer.vocab_size else b""

    def for_schema(self, schema: str) -> Grammar:
        """A JSON text that obeys ``schema``, which is the text of an object. Raises GrammarInvalid."""
        try:
            return self._compiled(LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS))
        except ValueError:
            raise GrammarInvalid() from None

    def for_calls(self, toolbox: Toolbox) -> Grammar:
        """Calls of the required tools in the form of ``JSON_FORM``: one, or several where the toolbox allows it.

        Raises:
            GrammarInvalid: the parameters of a tool do not compile.
        """
        tools = [tool for tool in toolbox.tools if tool.name in toolbox.required]
        start, end, line_end = self._tag(JSON_FORM.start), self._tag(JSON_FORM.end), _literal("\n")
        rules = [
            f"start: call ({line_end} call)*" if toolbox.parallel else "start: call",
            f"call: {start} {line_end} body {line_end} {end}",
            "body: " + " | ".join(f"body_{number}" for number in range(len(tools))),
            *(_tool_rule(number, tool) for number, tool in enumerate(tools)),
        ]
        return self._compiled(LLMatcher.grammar_from_lark("\n".join(rules)))

    def _compiled(self, grammar: str) -> Grammar:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarInvalid()
        return Grammar(matcher)

    def _tag(self, tag: str) -> str:
        # A special token is not reached by its text, so the grammar names it by itself.
        tokens = self._tokenizer.tokenize_str(tag, parse_special=True)
        return tag if len(tokens) == 1 and self._tokenizer.is_special_token(tokens[0]) else _literal(tag)


def _tool_rule(number: int, tool: Tool) -> str:
    head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
    return f"body_{number}: {_literal(head)} arguments_{number} {_literal('}')}\n" + (
        f"arguments_{number}: %json {json.dumps(_object_schema(tool.parameters))}"
    )


def _object_schema(parameters: Any) -> dict[str, Any]:
    # Arguments are an object in every form of a call, also where a schema leaves that open.
    return {**parameters, "type": "object", "x-guidance": _OPTIONS}


def _literal(text: str) -> str:
    return json.dumps(text)
