from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.answers import ProviderMessage, read_chunk, read_whole


def line(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode()


def chunk(**delta: Any) -> bytes:
    return line({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


class TestChunks:
    def test_a_delta_is_read(self) -> None:
        (choice,) = read_chunk(chunk(role="assistant", content="Hé")).choices
        assert (choice.index, choice.delta.role, choice.delta.content, choice.finish_reason) == (
            0,
            "assistant",
            "Hé",
            None,
        )

    @pytest.mark.parametrize(
        ("delta", "content_bytes"),
        [
            ({}, 0),
            ({"role": "assistant"}, 0),
            ({"content": ""}, 0),
            ({"content": None}, 0),
            ({"content": "Hé"}, 3),
            ({"reasoning_content": "hm"}, 2),
            ({"reasoning": "hm"}, 2),
            ({"reasoning": "hm", "reasoning_content": "hm"}, 2),
            ({"content": "a", "reasoning": "bc"}, 3),
        ],
    )
    def test_delivered_text_is_counted_in_bytes_and_once(self, delta: dict[str, Any], content_bytes: int) -> None:
        assert read_chunk(chunk(**delta)).content_bytes == content_bytes

    @pytest.mark.parametrize(
        ("value", "commits"),
        [
            ({"choices": []}, False),
            ({}, False),
            ({"choices": [{"delta": {"role": "assistant"}}]}, False),
            ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, False),
            ({"choices": [{"delta": {"content": "x"}}]}, True),
            ({"choices": [{"delta": {"reasoning": "x"}}]}, True),
            ({"choices": [{"delta": {}, "logprobs": {"content": [{"token": "x", "logprob": -1}]}}]}, True),
            ({"choices": [{"delta": {}, "logprobs": {"content": None}}]}, False),
            ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, True),
            ({"choices": [{"delta": {}}, {"index": 1, "delta": {"content": "x"}}]}, True),
        ],
    )
    def test_text_or_a_finish_commits_the_answer_and_a_bare_role_does_not(self, value: Any, commits: bool) -> None:
        assert read_chunk(line(value)).has_content is commits

    def test_members_that_we_do_not_read_are_ignored(self) -> None:
        read = read_chunk(line({"id": "x", "usage": None, "choices": [{"delta": {"content": "a", "refusal": None}}]}))
        assert read.choices[0].delta.content == "a"


class TestWholes:
    def test_a_completion_is_read(self) -> None:
        value = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hé"}, "finish_reason": "stop"}]}
        whole = read_whole(line(value))
        assert (whole.content_bytes, whole.choices[0].finish_reason) == (3, "stop")

    @pytest.mark.parametrize("value", [{}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": 5}])
    def test_what_is_no_completion_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="choices"):
            read_whole(line(value))


class TestWhatIsNoAnswer:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"data:",
            b"data: ",
            b"data: {",
            b"data: [DONE]",
            b'{"choices":[]}',
            b'event: x\ndata: {"choices":[]}',
            b"data: []",
            b'data: {"choices":[{"delta":{"content":5}}]}',
            b'data: {"choices":[{"delta":{"content":"\xff"}}]}',
            b'data: {"choices":[]} data: {"choices":[]}',
        ],
    )
    def test_it_is_refused_with_a_value_error(self, text: bytes) -> None:
        for read in (read_chunk, read_whole):
            with pytest.raises(ValueError):  # noqa: PT011  # the callers only look at the kind
                read(text)

    @given(st.binary(max_size=100))
    def test_whatever_a_machine_sends_nothing_else_is_raised(self, text: bytes) -> None:
        for raw in (text, b"data: " + text):
            try:
                read_chunk(raw)
            except ValueError as refused:
                assert str(refused)  # noqa: PT017


def test_reasoning_has_two_names() -> None:
    assert ProviderMessage(reasoning_content="a", reasoning="b").thinking == "a"
    assert ProviderMessage(reasoning="b").thinking == "b"
    assert ProviderMessage().thinking == ""
