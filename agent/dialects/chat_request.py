"""Reads the body of a chat completion (``POST /v1/chat/completions`` in OpenAI's form).

A member that this version cannot honour is refused by its name unless its value asks for nothing. A member that is not
known at all is ignored, as everywhere in the provider protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from agent.engine.job import ChatJob, ChatMessage, Role, Sampling
from agent.errors import JobRefused

_STOPS_MAX = 16
_STOP_CHARACTERS_MAX = 1024

_ENDPOINT = "/v1/chat/completions"

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}

_NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})

# What each of these may say without asking for something that this version cannot do.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": _NOTHING,
    "tool_choice": (None, "none", "auto"),
    "functions": _NOTHING,
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logprobs": _NOTHING,
    "top_logprobs": _NOTHING,
    "n": (None, 1),
    "best_of": (None, 1),
    "logit_bias": _NOTHING,
    "modalities": (None, ["text"]),
    "audio": _NOTHING,
    "prediction": _NOTHING,
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "top_k": (None, 0, -1),
    "min_p": _NOTHING,
    "repetition_penalty": (None, 1),
    "endpoint": (None, _ENDPOINT),
}

_OutputLimit = Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)] | None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    max_tokens: _OutputLimit = None
    max_completion_tokens: _OutputLimit = None
    max_output_tokens: _OutputLimit = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: _Penalty = None
    presence_penalty: _Penalty = None


_Refusable = msgspec.defstruct("_Refusable", [(name, Any, None) for name in _NEUTRAL])

_body_decoder = msgspec.json.Decoder(_Body)
_refusable_decoder = msgspec.json.Decoder(_Refusable)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """``model`` is the public id that the consumer asked for."""

    model: str
    stream: bool
    job: ChatJob


def parse(body: bytes) -> ChatRequest:
    """Read a decrypted body.

    Raises:
        JobRefused: it is not JSON, a member has a wrong value, or it asks for something this version cannot do. The
            text names the member and holds none of its value.
    """
    try:
        request = _body_decoder.decode(body)
        refusable = msgspec.structs.asdict(_refusable_decoder.decode(body))
    except msgspec.ValidationError as error:
        raise JobRefused(_without_values(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise JobRefused("the request body is not a JSON object") from None
    for name, value in refusable.items():
        if value not in _NEUTRAL[name]:
            raise JobRefused(f"{name}: not supported by this machine")
    limits = (request.max_tokens, request.max_completion_tokens, request.max_output_tokens)
    job = ChatJob(
        messages=tuple(_message(number, message) for number, message in enumerate(request.messages)),
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        sampling=Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
        ),
        stop=_stops(request.stop),
    )
    return ChatRequest(request.model, bool(request.stream), job)


def _message(number: int, message: _Message) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        raise JobRefused(f"messages[{number}].role: not a role that this machine knows")
    for name in ("tool_calls", "function_call"):
        if getattr(message, name):
            raise JobRefused(f"messages[{number}].{name}: not supported by this machine")
    if message.content is None and role == "assistant":
        return ChatMessage(role, "")
    if message.content is None:
        raise JobRefused(f"messages[{number}].content: missing")
    if isinstance(message.content, str):
        return ChatMessage(role, message.content)
    return ChatMessage(role, "".join(_text(number, index, part) for index, part in enumerate(message.content)))


def _text(number: int, index: int, part: _Part) -> str:
    if part.type != "text" or part.text is None:
        raise JobRefused(f"messages[{number}].content[{index}]: only parts of type text are supported by this machine")
    return part.text


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > _STOPS_MAX or any(not 1 <= len(text) <= _STOP_CHARACTERS_MAX for text in stops):
        raise JobRefused(f"stop: at most {_STOPS_MAX} texts of 1 to {_STOP_CHARACTERS_MAX} characters are allowed")
    return stops


def _without_values(error: msgspec.ValidationError) -> str:
    # "Invalid enum value 'x' - at `$.y`" quotes what was sent; the path and the rule do not.
    rule, at, path = str(error).partition(" - at ")
    member = path.strip("`").removeprefix("$.") if at else "the request body"
    return f"{member}: not a valid value" if rule.startswith("Invalid") else f"{member}: {rule}"
