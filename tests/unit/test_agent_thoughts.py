"""Thoughts are told from the answer, however the tags are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.thoughts import THOUGHT_TAGS, ThoughtSplitter


def split(*pieces: str, opened_by: str | None = None) -> tuple[str, str]:
    """Content and reasoning."""
    splitter = ThoughtSplitter(THOUGHT_TAGS, opened_by=opened_by)
    said = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
    assert all(text for _, text in said)
    return (
        "".join(text for channel, text in said if channel == "content"),
        "".join(text for channel, text in said if channel == "reasoning"),
    )


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("Hello.", "Hello.", ""),
        (" Hello. ", " Hello. ", ""),
        ("<think>hm</think>Hello.", "Hello.", "hm"),
        ("<think>\n hm \n</think>\n\nHello. ", "Hello. ", "hm"),
        ("\n<think>a</think> <think>b</think>c", "c", "ab"),
        ("<think>never closed ", "", "never closed"),
        ("<think></think>Hello.", "Hello.", ""),
        ("<|channel>thought\nhm<channel|>Hello.", "Hello.", "hm"),
        ("<think>a <channel|> b</think>c", "c", "a <channel|> b"),
        ("<thin", "<thin", ""),
        ("Write <think>this</think> tag", "Write <think>this</think> tag", ""),
        ("no thought</think> here", "no thought</think> here", ""),
        ("", "", ""),
    ],
)
def test_thoughts_before_the_answer_are_told_from_it(text: str, content: str, reasoning: str) -> None:
    assert split(text) == (content, reasoning)


def test_a_thought_that_the_prompt_opened_needs_no_tag() -> None:
    assert split("\nhm</think>\n\nHello.", opened_by="<think>") == ("Hello.", "hm")


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<|channel>thought", "<channel|>", " ", "\n", "a", "<", "th"])),
    st.sampled_from([None, "<think>"]),
    st.data(),
)
def test_it_does_not_matter_where_a_stream_is_cut(words: list[str], opened_by: str | None, data: st.DataObject) -> None:
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(*pieces, opened_by=opened_by) == split(text, opened_by=opened_by)


def test_text_is_passed_on_at_once_and_what_may_be_a_tag_is_held() -> None:
    splitter = ThoughtSplitter(THOUGHT_TAGS)
    assert splitter.feed("<th") == []
    assert splitter.feed("ree") == [("content", "<three")]
    assert splitter.feed("lo ") == [("content", "lo ")]
    assert not splitter.thinking


def test_it_says_whether_the_model_is_thinking() -> None:
    splitter = ThoughtSplitter(THOUGHT_TAGS)
    splitter.feed("<think>")
    assert splitter.thinking
    splitter.feed("hm</think>")
    assert not splitter.thinking
