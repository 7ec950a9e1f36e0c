"""The form that an answer must have, and what a machine may charge for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.answers import (
    ProviderChunk,
    ProviderDelta,
    ProviderFunction,
    ProviderMessage,
    ProviderToolCall,
    Whole,
    WholeChoice,
)
from api.consumer.expected import CALLS_WITH_SLACK_MAX, Delivered, Expected, Misshapen

TOOLS = frozenset({"f", "g"})


def delivered(expected: Expected, *answers: ProviderChunk | Whole) -> Delivered:
    tally = Delivered(expected)
    for answer in answers:
        tally.add(answer)
    return tally


def chunk(index: int = 0, **message: Any) -> ProviderChunk:
    return ProviderChunk((ProviderDelta(index, ProviderMessage(**message)),))


def call(number: int | None, name: str | None = None, arguments: str = "") -> ProviderToolCall:
    return ProviderToolCall(number, None, ProviderFunction(name, arguments))


def calls(*pieces: ProviderToolCall, index: int = 0) -> ProviderChunk:
    return chunk(index, tool_calls=pieces)


class TestTheBound:
    @pytest.mark.parametrize(("text", "stop_bytes", "bound"), [("", 0, 16), ("x" * 100, 0, 116), ("é", 7, 25)])
    def test_a_token_is_at_least_a_byte_that_was_delivered(self, text: str, stop_bytes: int, bound: int) -> None:
        tally = delivered(Expected(True, stop_bytes=stop_bytes), chunk(content=text))
        assert tally.completion_bound() == bound

    def test_each_choice_has_an_end_of_its_own(self) -> None:
        assert delivered(Expected(True, choices=3, stop_bytes=4)).completion_bound() == 3 * (16 + 4)

    def test_the_tags_of_a_choices_reasoning_count_once(self) -> None:
        expected = Expected(True, choices=2)
        thinking = [chunk(0, reasoning_content="a"), chunk(0, reasoning="b")]
        assert delivered(expected, *thinking).completion_bound() == 2 + 2 * 16 + 32

    def test_each_call_may_have_words_around_it(self) -> None:
        tally = delivered(Expected(True, tools=TOOLS), calls(call(0, "f", "{"), call(0, None, "}"), call(1, "g", "{}")))
        assert tally.completion_bound() == len("f{}g{}") + 16 + 2 * 32

    def test_a_machine_cannot_make_slack_out_of_pieces_or_of_calls_that_nobody_offered(self) -> None:
        repeated = [calls(call(0, "f")) for _ in range(100)]
        assert delivered(Expected(True, tools=TOOLS), *repeated).completion_bound() == 100 + 16 + 32
        invented = [calls(call(number, "h")) for number in range(100)]
        assert delivered(Expected(True, tools=TOOLS), *invented).completion_bound() == 100 + 16
        assert delivered(Expected(True), *repeated).completion_bound() == 100 + 16

    def test_the_slack_for_calls_has_an_end(self) -> None:
        many = [calls(call(number, "f")) for number in range(100)]
        assert delivered(Expected(True, tools=TOOLS), *many).completion_bound() == 100 + 16 + CALLS_WITH_SLACK_MAX * 32

    def test_a_whole_answer_counts_as_its_stream_does(self) -> None:
        expected = Expected(False, choices=2, stop_bytes=3, tools=TOOLS)
        message = ProviderMessage(content="a", reasoning="b", tool_calls=(call(None, "f", "{}"), call(None, "g", "{}")))
        whole = Whole((WholeChoice(message, 1), WholeChoice(ProviderMessage(content="c"), 0)))
        pieces = [
            chunk(1, content="a"),
            chunk(1, reasoning="b"),
            calls(call(0, "f", "{}"), index=1),
            calls(call(1, "g", "{}"), index=1),
            chunk(0, content="c"),
        ]
        assert delivered(expected, whole).completion_bound() == delivered(expected, *pieces).completion_bound()

    @given(
        st.lists(
            st.one_of(
                st.builds(chunk, st.integers(0, 1), content=st.text(max_size=5), reasoning=st.text(max_size=5)),
                st.builds(
                    lambda index, name: calls(call(99, name, "{}"), index=index),
                    st.integers(0, 1),
                    st.sampled_from(["f", "h"]),
                ),
            )
        )
    )
    def test_without_more_bytes_the_bound_hardly_grows(self, answers: list[ProviderChunk]) -> None:
        tally = delivered(Expected(True, choices=2, tools=TOOLS), *answers)
        sent = sum(answer.content_bytes for answer in answers)
        assert tally.content_bytes == sent
        assert sent + 2 * 16 <= tally.completion_bound() <= sent + 2 * (16 + 32 + 32)


class TestTheForm:
    @pytest.mark.parametrize("index", [-1, 2, 99])
    def test_a_choice_that_nobody_asked_for_is_none(self, index: int) -> None:
        with pytest.raises(Misshapen):
            delivered(Expected(True, choices=2), chunk(index, content="x"))

    @pytest.mark.parametrize("indexes", [[0], [0, 0], [0, 1, 2], [1, 2]])
    def test_a_whole_answer_has_every_choice_once(self, indexes: list[int]) -> None:
        whole = Whole(tuple(WholeChoice(ProviderMessage(content="x"), index) for index in indexes))
        with pytest.raises(Misshapen):
            delivered(Expected(False, choices=2), whole)

    def test_calls_come_one_after_the_other_in_each_choice(self) -> None:
        expected = Expected(True, choices=2, tools=TOOLS)
        in_order = [calls(call(0, "f")), calls(call(1, "g")), calls(call(0, "f"), index=1), calls(call(1), index=0)]
        delivered(expected, *in_order)
        with pytest.raises(Misshapen):
            delivered(expected, *in_order, calls(call(0), index=0))
