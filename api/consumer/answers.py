"""What a machine's answer says, read into types: stream chunks and whole completions in OpenAI's form."""

from __future__ import annotations

from typing import TypeVar

import msgspec

PREFIX = b"data: "

T = TypeVar("T")


class ProviderFunction(msgspec.Struct, frozen=True, omit_defaults=True):
    """``arguments`` is JSON text, or the next piece of it."""

    name: str | None = None
    arguments: str | None = None


class ProviderToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool call or a piece of one. In a stream ``index`` tells the calls of an answer apart, and only the first
    piece of a call has an id and a name."""

    index: int | None = None
    id: str | None = None
    function: ProviderFunction = ProviderFunction()

    @property
    def content_bytes(self) -> int:
        return len((self.function.name or "").encode()) + len((self.function.arguments or "").encode())


class ProviderMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message or a delta. ``reasoning`` and ``reasoning_content`` are two names of one thing."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ProviderToolCall, ...] | None = None

    @property
    def thinking(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def content_bytes(self) -> int:
        spoken = len((self.content or "").encode()) + len(self.thinking.encode())
        return spoken + sum(call.content_bytes for call in self.tool_calls or ())


class LikelyToken(msgspec.Struct, frozen=True):
    """A token and the natural logarithm of its probability. ``bytes`` are its own, which may be part of a character."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class ChosenToken(LikelyToken, frozen=True):
    """A token of the answer, with the likeliest at its place."""

    top_logprobs: tuple[LikelyToken, ...] = ()


class ProviderLogprobs(msgspec.Struct, frozen=True):
    content: tuple[ChosenToken, ...] | None = None


def tokens_of(logprobs: ProviderLogprobs | None) -> tuple[ChosenToken, ...]:
    return () if logprobs is None else logprobs.content or ()


class ProviderDelta(msgspec.Struct, frozen=True):
    index: int = 0
    delta: ProviderMessage = ProviderMessage()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop sequence that ended the text, from an engine that says so."""

    logprobs: ProviderLogprobs | None = None

    @property
    def tokens(self) -> tuple[ChosenToken, ...]:
        return tokens_of(self.logprobs)


class ProviderChunk(msgspec.Struct, frozen=True):
    choices: tuple[ProviderDelta, ...] = ()

    @property
    def content_bytes(self) -> int:
        return sum(choice.delta.content_bytes for choice in self.choices)

    @property
    def has_content(self) -> bool:
        """Whether this commits the answer: text, reasoning, a tool call, a token or a finish, but not a bare role."""
        return any(choice.finish_reason or choice.delta.content_bytes or choice.tokens for choice in self.choices)


class WholeChoice(msgspec.Struct, frozen=True):
    message: ProviderMessage
    index: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: ProviderLogprobs | None = None

    @property
    def tokens(self) -> tuple[ChosenToken, ...]:
        return tokens_of(self.logprobs)


class Whole(msgspec.Struct, frozen=True):
    """A completion that came in one piece."""

    choices: tuple[WholeChoice, ...]

    @property
    def content_bytes(self) -> int:
        return sum(choice.message.content_bytes for choice in self.choices)

    def in_order(self) -> list[WholeChoice]:
        return sorted(self.choices, key=lambda choice: choice.index)


_chunk = msgspec.json.Decoder(ProviderChunk)
_whole = msgspec.json.Decoder(Whole)


def read_chunk(text: bytes) -> ProviderChunk:
    """Raises ValueError when the text is not an event of a chat stream."""
    return _decoded(_chunk, text)


def read_whole(text: bytes) -> Whole:
    """Raises ValueError when the text is not a chat completion."""
    whole = _decoded(_whole, text)
    if not whole.choices:
        raise ValueError("no choices")
    return whole


def _decoded(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    try:
        return decoder.decode(_payload(text))
    except RecursionError:
        raise ValueError("nested too deep") from None


def _payload(text: bytes) -> bytes:
    if not text.startswith(PREFIX):
        raise ValueError("not a data line")
    return text[len(PREFIX) :]
