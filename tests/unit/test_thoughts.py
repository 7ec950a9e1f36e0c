from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.answers import ProviderChunk, ProviderDelta, ProviderMessage, Whole, WholeChoice
from api.consumer.thoughts import Thoughts, ThoughtSplitter, Told


def told(*pieces: str) -> Told:
    splitter = ThoughtSplitter()
    parts = [*(splitter.feed(piece) for piece in pieces), splitter.flush()]
    return Told("".join(part.content for part in parts), "".join(part.reasoning for part in parts))


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("Hello.", "Hello.", ""),
        ("<think>hm</think>Hello.", "Hello.", "hm"),
        ("<think>\n hm \n</think>\n\nHello. ", "Hello. ", "hm"),
        ("a <think>b</think> c", "a c", "b"),
        ("<think>a</think>b<think>c</think>d", "bd", "ac"),
        ("<think>never closed ", "", "never closed"),
        ("<think></think>Hello.", "Hello.", ""),
        ("<|channel>thought\nhm<channel|>Hello.", "Hello.", "hm"),
        ("<think>a <channel|> b</think>c", "c", "a <channel|> b"),
        ("1 < 2 and <thin", "1 < 2 and <thin", ""),
        ("no thought</think> here", "no thought</think> here", ""),
        ("", "", ""),
    ],
)
def test_thoughts_are_told_from_text(text: str, content: str, reasoning: str) -> None:
    assert told(text) == (content, reasoning)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<|channel>thought", "<channel|>", " ", "\n", "a", "<", "th"])),
    st.data(),
)
def test_it_does_not_matter_where_a_stream_is_cut(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert told(*pieces) == told(text)


def test_text_without_a_tag_is_passed_on_at_once() -> None:
    splitter = ThoughtSplitter()
    assert splitter.feed("Hel") == ("Hel", "")
    assert splitter.feed("lo ") == ("lo ", "")
    assert splitter.flush() == ("", "")


def test_what_looks_like_a_tag_is_held_until_it_is_none() -> None:
    splitter = ThoughtSplitter()
    assert splitter.feed("a<th") == ("a", "")
    assert splitter.feed("ree") == ("<three", "")


def test_a_chunk_keeps_everything_else_that_it_says() -> None:
    thoughts = Thoughts()
    first = ProviderChunk((ProviderDelta(0, ProviderMessage(role="assistant", content="<think>h")),))
    last = ProviderChunk((ProviderDelta(0, ProviderMessage(content="m</think>4<"), "stop", "END"),))
    assert thoughts.in_chunk(first) == ProviderChunk(
        (ProviderDelta(0, ProviderMessage(role="assistant", reasoning_content="h")),)
    )
    assert thoughts.in_chunk(last) == ProviderChunk(
        (ProviderDelta(0, ProviderMessage(content="4<", reasoning_content="m"), "stop", "END"),)
    )
    assert thoughts.rest() == ProviderChunk(())


def test_an_answer_without_a_finish_loses_nothing() -> None:
    thoughts = Thoughts()
    thoughts.in_chunk(ProviderChunk((ProviderDelta(0, ProviderMessage(content="a <")),)))
    assert thoughts.rest() == ProviderChunk((ProviderDelta(0, ProviderMessage(content="<")),))


def test_what_an_engine_tells_apart_itself_comes_first() -> None:
    message = ProviderMessage(content="<think>b</think>c", reasoning="a")
    (choice,) = Thoughts().in_whole(Whole((WholeChoice(message, 0, "stop"),))).choices
    assert choice.message == ProviderMessage(content="c", reasoning_content="ab")


def test_a_message_without_thoughts_stays_as_it_is() -> None:
    message = ProviderMessage(content="c", reasoning="a")
    (choice,) = Thoughts().in_whole(Whole((WholeChoice(message, 0, "stop"),))).choices
    assert choice.message is message
