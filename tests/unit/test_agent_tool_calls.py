"""Tool calls are read out of an answer, however it is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.job import Tool, Toolbox
from agent.engine.reading import AnswerReader, Part, Reading
from agent.engine.thoughts import THOUGHT_TAGS
from agent.engine.tool_calls import CallPiece, ToolCallSplitter
from agent.engine.tool_forms import JSON_FORM, ToolForm

TOOLS = (Tool("look", "", {}), Tool("say-it", "", {}))
Said = tuple[str, list[tuple[str, str]]]


def call(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def split(*pieces: str, form: ToolForm = JSON_FORM) -> Said:
    """The text, and each call's name and arguments."""
    splitter = ToolCallSplitter(form, TOOLS)
    text, calls = "", []
    for said in [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush():
        if isinstance(said, CallPiece):
            if said.head is not None:
                assert said.head.id.startswith("call_")
                assert said.call == len(calls)
                calls.append((said.head.name, ""))
            name, arguments = calls[said.call]
            calls[said.call] = (name, arguments + said.text)
        else:
            assert said
            text += said
    assert splitter.begun == len(calls)
    return text, calls


def cut(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]


def test_a_call_has_its_name_and_arguments() -> None:
    assert split(call("look", {"at": "the sky"})) == ("", [("look", '{"at": "the sky"}')])


def test_text_and_several_calls_stand_side_by_side() -> None:
    text = "I look.\n" + call("look", {}) + "\n" + call("say-it", {"n": [1, {"m": 2}]}) + "\nDone."
    assert split(text) == ("I look.Done.", [("look", "{}"), ("say-it", '{"n": [1, {"m": 2}]}')])


def test_the_name_comes_before_the_arguments_are_complete() -> None:
    splitter = ToolCallSplitter(JSON_FORM, TOOLS)
    (begin, piece) = splitter.feed('<tool_call>{"name": "look", "arguments": {"at": "th')
    assert isinstance(begin, CallPiece)
    assert isinstance(piece, CallPiece)
    assert begin.head is not None
    assert (begin.head.name, begin.text, piece.head, piece.text) == ("look", "", None, '{"at": "th')
    assert splitter.completed == 0


@pytest.mark.parametrize("value", ["</tool_call>", '"}', "\\", '\\"}}', "{[", "<tool_call>"])
def test_no_text_in_the_arguments_ends_a_call(value: str) -> None:
    _, ((_, arguments),) = split(call("look", {"at": value}))
    assert json.loads(arguments) == {"at": value}


@pytest.mark.parametrize(
    "text",
    [
        call("unknown", {"a": 1}),
        call("look", [1]),
        "<tool_call>\nnot json\n</tool_call>",
        "<tool_call>[1, 2]</tool_call>",
        '<tool_call>{"name": "look"}</tool_call>',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
        "a <tool_cal",
        "<tool_call>{",
    ],
)
def test_what_is_no_call_of_a_known_tool_stays_text(text: str) -> None:
    assert split(text) == (text, [])


def test_members_in_another_order_are_understood() -> None:
    assert split('<tool_call>{"arguments": {"a": 1}, "name": "look"}</tool_call>') == ("", [("look", '{"a": 1}')])


def test_a_call_without_its_end_tag_counts() -> None:
    assert split('<tool_call>{"name": "look", "arguments": {"a": 1}}') == ("", [("look", '{"a": 1}')])


def test_a_form_of_its_own_is_parsed_at_its_end() -> None:
    def parse(text: str, tools: tuple[Tool, ...]) -> list[tuple[str, dict[str, Any]]]:
        return [(name, {}) for name in text.split(",")]

    assert split("hm [CALLS]look,say-it", form=ToolForm("[CALLS]", "", parse)) == (
        "hm",
        [("look", "{}"), ("say-it", "{}")],
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["</tool_call>", "<tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.tuples(st.sampled_from(["look", "say-it"]), st.dictionaries(st.text(max_size=4), json_values))),
    st.data(),
)
def test_calls_survive_any_cut(calls: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    text = "Well.\n" + "\n".join(call(name, arguments) for name, arguments in calls)
    said, read = split(*cut(text, data))
    assert said.strip() == "Well."
    assert [(name, json.loads(arguments)) for name, arguments in read] == calls


@given(
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "look", "arguments": ', "{", "}", '"', "\\", " ", "\n", "a", "<"]
        ),
        max_size=16,
    ),
    st.data(),
)
def test_it_does_not_matter_where_anything_is_cut(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    assert split(*cut(text, data)) == split(text)


def read(reader: AnswerReader, *pieces: str) -> list[Part]:
    said: list[Part] = []
    for piece in pieces:
        said += reader.feed(piece)
        if reader.ended:
            return said
    return said + reader.flush()


def reading(*, stop: tuple[str, ...] = (), parallel: bool = True, opened_by: str | None = None) -> Reading:
    return Reading(THOUGHT_TAGS, opened_by, stop, Toolbox(TOOLS, parallel=parallel), JSON_FORM)


def test_thoughts_text_and_calls_come_in_order() -> None:
    reader = AnswerReader(reading())
    said = read(reader, "<think>I sho", "uld</think>Let me.", call("look", {}))
    assert [(part.channel, part.text) for part in said] == [
        ("reasoning", "I sho"),
        ("reasoning", "uld"),
        ("content", "Let me."),
        ("tool_call", ""),
        ("tool_call", "{}"),
    ]
    assert reader.finish_reason == "tool_calls"


def test_a_stop_text_ends_text_and_not_thoughts_or_arguments() -> None:
    reader = AnswerReader(reading(stop=("STOP",)))
    said = read(reader, "<think>STOP</think>", call("look", {"at": "STOP"}), "a ST", "OP b")
    assert [part.text for part in said if part.channel == "content"] == ["a "]
    assert (reader.ended, reader.stop_text, reader.finish_reason) == (True, "STOP", "stop")


@pytest.mark.parametrize(
    "pieces",
    [
        [call("look", {}) + call("look", {"b": 1}) + "more"],
        [call("look", {}) + "more"],
        [call("look", {}), "more"],
        [call("look", {})],
    ],
)
def test_an_answer_without_parallel_calls_ends_after_its_first(pieces: list[str]) -> None:
    reader = AnswerReader(reading(parallel=False))
    said = read(reader, *pieces)
    assert [part.text for part in said] == ["", "{}"]
    assert (reader.ended, reader.finish_reason) == (True, "tool_calls")


@given(
    st.lists(
        st.sampled_from(
            [call("look", {}), "<think>", "</think>", "STOP", "ST", " ", "\n", "text", "<tool_call>", "</"]
        ),
        max_size=10,
    ),
    st.booleans(),
    st.data(),
)
def test_what_is_read_does_not_depend_on_the_cuts(words: list[str], parallel: bool, data: st.DataObject) -> None:
    text = "".join(words)

    def outcome(*pieces: str) -> tuple[object, ...]:
        reader = AnswerReader(reading(stop=("STOP",), parallel=parallel))
        said = read(reader, *pieces)
        channels = [
            "".join(part.text for part in said if part.channel == channel)
            for channel in ("content", "reasoning", "tool_call")
        ]
        return *channels, sum(part.head is not None for part in said), reader.stop_text, reader.finish_reason

    assert outcome(*cut(text, data)) == outcome(text)
