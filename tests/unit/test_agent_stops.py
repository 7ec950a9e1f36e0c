"""An answer ends at its first stop text, however it was cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.stops import StopFilter

letters = st.text("abc", max_size=24)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    delivered = ""
    for piece in pieces:
        text, stopped = stop_filter.feed(piece)
        delivered += text
        if stopped is not None:
            assert stopped in stops
            return delivered, True
    return delivered + stop_filter.flush(), False


def test_text_without_stops_passes_through() -> None:
    assert run([], ["one", " two"]) == ("one two", False)


def test_a_stop_text_that_is_cut_across_pieces_is_removed() -> None:
    assert run(["STOP"], ["go S", "TO", "P on"]) == ("go ", True)


def test_a_partial_match_that_breaks_off_is_delivered() -> None:
    assert run(["STOP"], ["go ST", "AY"]) == ("go STAY", False)


def test_a_partial_match_at_the_end_is_delivered() -> None:
    assert run(["STOP"], ["go STO"]) == ("go STO", False)


def test_nothing_that_may_belong_to_a_stop_text_is_delivered_early() -> None:
    stop_filter = StopFilter(["STOP"])
    assert stop_filter.feed("go ST") == ("go ", None)


def test_the_stop_text_that_is_complete_first_wins() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == ("a", True)


def test_of_two_that_end_together_the_longer_wins() -> None:
    assert run(["b", "ab"], ["xab"]) == ("x", True)


@given(stop_lists, letters, st.lists(st.integers(0, 24), max_size=8))
def test_the_borders_between_pieces_change_nothing(stops: list[str], text: str, cuts: list[int]) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    pieces = [text[begin:end] for begin, end in pairwise(borders)]
    assert run(stops, pieces) == run(stops, list(text))


@given(stop_lists, letters)
def test_what_is_delivered_begins_the_text_and_holds_no_stop_text(stops: list[str], text: str) -> None:
    delivered, stopped = run(stops, [text])
    assert text.startswith(delivered)
    assert not any(stop in delivered for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    if not stopped:
        assert delivered == text


@pytest.mark.parametrize("stop", ["é", "🙂", "日本"])
def test_stop_texts_may_hold_any_character(stop: str) -> None:
    assert run([stop], ["a" + stop[0], stop[1:] + "b"]) == ("a", True)
