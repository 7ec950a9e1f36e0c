"""Tells a model's thoughts from its text, where an engine sends both as one text (consumer API, sections 6.4, 6.5)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from api.consumer.answers import ProviderChunk, ProviderDelta, ProviderMessage, Whole

_OPENING = {"<think>": "</think>", "<|channel>thought": "<channel|>"}
"""The tags that models put around their thoughts: the one that opens to the one that closes."""


class Told(NamedTuple):
    content: str
    reasoning: str


class ThoughtSplitter:
    """Splits one answer, however its tags are cut across pieces. White space around a thought is dropped."""

    def __init__(self) -> None:
        self._held = ""
        self._closing = ""
        self._at_border = False

    def feed(self, text: str) -> Told:
        """What is certain of the answer after some more of it."""
        if "<" not in text and not (self._held or self._closing or self._at_border):
            return Told(text, "")
        content, reasoning = [""], [""]
        rest = self._held + text
        while found := self._first_tag(rest):
            at, tag = found
            before, rest = rest[:at], rest[at + len(tag) :]
            if self._closing:
                reasoning.append(self._trimmed(before).rstrip())
                self._closing = ""
            else:
                content.append(self._trimmed(before))
                self._closing = _OPENING[tag]
            self._at_border = True
        certain = len(rest) - self._uncertain(rest)
        self._held = rest[certain:]
        (reasoning if self._closing else content).append(self._trimmed(rest[:certain]))
        return Told("".join(content), "".join(reasoning))

    def flush(self) -> Told:
        """What was held back, at the end of the answer: what looked like a tag is none."""
        held, self._held = self._trimmed(self._held), ""
        return Told("", held.rstrip()) if self._closing else Told(held, "")

    def _first_tag(self, text: str) -> tuple[int, str] | None:
        tags = (self._closing,) if self._closing else _OPENING
        places = [(text.find(tag), tag) for tag in tags if tag in text]
        return min(places, default=None)

    def _uncertain(self, text: str) -> int:
        """How much of the end may still become a tag, or white space in front of the end of a thought."""
        tags = (self._closing,) if self._closing else tuple(_OPENING)
        longest = max(
            (size for tag in tags for size in range(1, min(len(tag), len(text) + 1)) if text.endswith(tag[:size])),
            default=0,
        )
        if not self._closing:
            return longest
        before = text[: len(text) - longest]
        return longest + len(before) - len(before.rstrip())

    def _trimmed(self, text: str) -> str:
        if self._at_border:
            text = text.lstrip()
            self._at_border = not text
        return text


class Thoughts:
    """Splits all choices of an answer."""

    def __init__(self) -> None:
        self._splitters: dict[int, ThoughtSplitter] = {}

    def in_chunk(self, chunk: ProviderChunk) -> ProviderChunk:
        return ProviderChunk(tuple(self._in_choice(choice) for choice in chunk.choices))

    def in_whole(self, whole: Whole) -> Whole:
        choices = []
        for choice in whole.choices:
            splitter = ThoughtSplitter()
            told = [splitter.feed(choice.message.content or ""), splitter.flush()]
            choices.append(msgspec.structs.replace(choice, message=_rewritten(choice.message, told)))
        return Whole(tuple(choices))

    def rest(self) -> ProviderChunk:
        """What is left at the end, of an answer whose machine gave no finish."""
        left = [(index, splitter.flush()) for index, splitter in self._splitters.items()]
        return ProviderChunk(
            tuple(ProviderDelta(index, _rewritten(ProviderMessage(), [told])) for index, told in left if any(told))
        )

    def _in_choice(self, choice: ProviderDelta) -> ProviderDelta:
        splitter = self._splitters.get(choice.index)
        if splitter is None:
            splitter = self._splitters[choice.index] = ThoughtSplitter()
        told = [splitter.feed(choice.delta.content or "")]
        if choice.finish_reason:
            told.append(splitter.flush())
        return msgspec.structs.replace(choice, delta=_rewritten(choice.delta, told))


def _rewritten(message: ProviderMessage, told: list[Told]) -> ProviderMessage:
    content = "".join(one.content for one in told)
    reasoning = "".join(one.reasoning for one in told)
    if content == (message.content or "") and not reasoning:
        return message
    return msgspec.structs.replace(
        message, content=content or None, reasoning_content=message.thinking + reasoning or None, reasoning=None
    )
