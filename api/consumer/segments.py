"""Cuts an answer into segments: reasoning, text and tool calls, one open at a time.

Dialects that frame each part of an answer (Messages with blocks, Responses with items) both build on this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from api.consumer.answers import ChosenToken, ProviderMessage, ProviderToolCall

Kind = Literal["reasoning", "text", "tool_call"]


class Segment:
    """One part of an answer. ``index`` counts from 0; only a tool call has an id and a name, and only text may
    have ``tokens``."""

    def __init__(self, index: int, kind: Kind, call_id: str = "", name: str = "") -> None:
        self.index = index
        self.kind = kind
        self.call_id = call_id
        self.name = name
        self.tokens: list[ChosenToken] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Everything it said so far; a tool call's arguments."""
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        self._pieces.append(piece)


class Opened(NamedTuple):
    segment: Segment


class Said(NamedTuple):
    """``tokens`` are those of the piece, from a machine that was asked for them."""

    segment: Segment
    piece: str
    tokens: tuple[ChosenToken, ...] = ()


class Closed(NamedTuple):
    segment: Segment


Step = Opened | Said | Closed


class Segments:
    """``with_reasoning`` is False for a consumer who asked not to see any: then it leaves no trace."""

    def __init__(self, *, with_reasoning: bool = True) -> None:
        self.closed: list[Segment] = []
        self._with_reasoning = with_reasoning
        self._open: Segment | None = None
        self._open_call = -1

    def feed(self, message: ProviderMessage, tokens: tuple[ChosenToken, ...] = ()) -> Iterator[Step]:
        """What a delta, or a whole message, adds. ``tokens`` are those of its text."""
        if message.thinking and self._with_reasoning:
            yield from self._say("reasoning", message.thinking)
        if message.content:
            yield from self._say("text", message.content, tokens)
        for position, call in enumerate(message.tool_calls or ()):
            yield from self._call(position if call.index is None else call.index, call)

    def close(self) -> Iterator[Step]:
        if self._open is not None:
            self.closed.append(self._open)
            yield Closed(self._open)
        self._open = None

    def _say(self, kind: Kind, piece: str, tokens: tuple[ChosenToken, ...] = ()) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(Segment(len(self.closed) + (self._open is not None), kind))
        assert self._open is not None
        self._open.add(piece)
        self._open.tokens += tokens
        yield Said(self._open, piece, tokens)

    def _call(self, number: int, call: ProviderToolCall) -> Iterator[Step]:
        function = call.function
        if self._open is None or self._open.kind != "tool_call" or self._open_call != number:
            index = len(self.closed) + (self._open is not None)
            self._open_call = number
            yield from self._begin(Segment(index, "tool_call", call.id or f"call_{index}", function.name or ""))
        assert self._open is not None
        if function.arguments:
            self._open.add(function.arguments)
            yield Said(self._open, function.arguments)

    def _begin(self, segment: Segment) -> Iterator[Step]:
        yield from self.close()
        self._open = segment
        yield Opened(segment)


def segments_of(
    message: ProviderMessage, tokens: tuple[ChosenToken, ...] = (), *, with_reasoning: bool = True
) -> list[Segment]:
    """The segments of a whole message."""
    segments = Segments(with_reasoning=with_reasoning)
    for _ in (*segments.feed(message, tokens), *segments.close()):
        pass
    return segments.closed
