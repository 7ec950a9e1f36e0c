"""What an engine takes and gives: a chat in, pieces of text, of thoughts and of tool calls out.

Fields that hold a consumer's text are left out of every ``repr``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.errors import JobError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
Channel = Literal["content", "reasoning", "tool_call"]
Scalar = str | int | float | bool | None

MAX_TOKENS_UNSET = 8192
"""The output limit of a job that names none, or the context that is left when that is less."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier answer made. ``arguments`` is the JSON object that its text held."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """``tool_call_id`` names the call that a message of the role ``tool`` answers, where the consumer says so."""

    role: Role
    content: str = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str = field(repr=False)
    parameters: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a job. ``required`` holds the names of those of which one must be called; empty lets the model
    choose. Without ``parallel`` an answer ends after its first call."""

    tools: tuple[Tool, ...]
    required: tuple[str, ...] = ()
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. A temperature of 0 is greedy; one seed gives one answer on one machine and build.

    The frequency and presence penalties look at the answer's own tokens and range from -2 to 2; the repetition penalty
    is a factor and looks at the prompt too. A ``top_k`` of 0 keeps all tokens. ``logit_bias`` maps token ids to what
    is added to their logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatJob:
    """One chat to complete.

    ``max_tokens`` is cut to what the context leaves; ``stop`` texts are not delivered. ``choices`` answers are drawn
    independently, each with a seed of its own. ``top_logprobs`` asks for the log probability of every token of the
    content and of that many alternatives. ``response_schema`` is the text of a JSON schema that the content must obey.
    ``thinking`` and ``template_arguments`` are handed to the chat template. Conversations are remembered under
    ``cache_salt`` and never without one.
    """

    messages: tuple[ChatMessage, ...] = field(repr=False)
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = field(default=(), repr=False)
    choices: int = 1
    top_logprobs: int | None = None
    toolbox: Toolbox | None = field(default=None, repr=False)
    response_schema: str | None = field(default=None, repr=False)
    thinking: bool | None = None
    template_arguments: Mapping[str, Scalar] = field(default_factory=dict, repr=False)
    cache_salt: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood at one place: its text, the bytes of it, and its natural log probability."""

    token: str = field(repr=False)
    bytes: bytes = field(repr=False)
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The token that was drawn at one place, and the most probable ones there, best first."""

    drawn: Alternative
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class CallHead:
    """What is known of a tool call when it begins."""

    id: str
    name: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of one choice.

    On the channel ``tool_call`` the text is a piece of the arguments' JSON, ``call`` numbers the calls of the choice
    from 0, and the first piece of each call has its ``head``. On the others the text is never empty. The counts are
    those of the choice's tokens so far; reasoning is part of the completion.
    """

    text: str = field(repr=False)
    completion_tokens: int
    choice: int = 0
    channel: Channel = "content"
    call: int = 0
    head: CallHead | None = None
    reasoning_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """The end of one choice. ``stop_text`` is the stop text that ended it."""

    finish_reason: FinishReason
    choice: int = 0
    stop_text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer, after the end of each choice.

    ``prompt_tokens`` counts the rendered prompt once, ``cached_tokens`` what of it was remembered. The other two are
    sums over the choices: ``completion_tokens`` is what was generated without the end tokens. When cancelled, they
    count only what had been taken from the engine, and choices that were open have no end.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cancelled: bool = False


Event = Piece | ChoiceEnd | Finished | JobError


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens a second of one request alone, as measured by the warm-up."""

    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What an engine is busy with, in choices. ``active_tokens`` sums prompt and generated tokens of the running ones,
    ``max_tokens_potential`` their output limits."""

    running: int = 0
    waiting: int = 0
    active_tokens: int = 0
    max_tokens_potential: int = 0
