"""What an engine takes and gives: a chat in, pieces of text out.

Fields that hold a consumer's text are left out of every ``repr``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agent.errors import JobError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled"]

MAX_TOKENS_UNSET = 8192
"""The output limit of a job that names none, or the context that is left when that is less."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: Role
    content: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. A temperature of 0 is greedy; one seed gives one answer on one machine and build.

    The penalties look at the answer's own tokens, not at the prompt's, and range from -2 to 2.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class ChatJob:
    """One chat to complete. ``max_tokens`` is cut to what the context leaves; ``stop`` texts are not delivered."""

    messages: tuple[ChatMessage, ...] = field(repr=False)
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text of the answer, never empty. ``completion_tokens`` counts from the start of the answer."""

    text: str = field(repr=False)
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer.

    ``prompt_tokens`` counts the rendered prompt, ``completion_tokens`` what was generated without the end token. When
    cancelled, ``completion_tokens`` counts only what had been taken from the engine.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


Event = Piece | Finished | JobError


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens a second of one request alone, as measured by the warm-up."""

    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What an engine is busy with. ``active_tokens`` sums prompt and generated tokens of the running jobs,
    ``max_tokens_potential`` their output limits."""

    running: int = 0
    waiting: int = 0
    active_tokens: int = 0
    max_tokens_potential: int = 0
