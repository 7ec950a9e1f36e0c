"""Reads the body of a chat completion (``POST /v1/chat/completions`` in OpenAI's form).

A member that this version cannot honour is refused by its name unless its value asks for nothing. A member that is not
known at all is ignored, as everywhere in the provider protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from agent.dialects.chat_messages import Message, read_messages
from agent.dialects.chat_tools import TOOLS_MAX, OfferedTool, ToolChoice, read_toolbox
from agent.engine.job import ChatJob, Sampling, Scalar
from agent.errors import JobRefused

_STOPS_MAX = 16
_STOP_CHARACTERS_MAX = 1024
_SCHEMA_CHARACTERS_MAX = 131_072

_ENDPOINT = "/v1/chat/completions"
_ANY_OBJECT = '{"type": "object"}'

_NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})

# What each of these may say without asking for something that this version cannot do.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "functions": _NOTHING,
    "function_call": (None, "none", "auto"),
    "best_of": (None, 1),
    "modalities": (None, ["text"]),
    "audio": _NOTHING,
    "prediction": _NOTHING,
    "web_search_options": (None,),
    "endpoint": (None, _ENDPOINT),
}

_OutputLimit = Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)] | None
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)] | None
_TokenId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}\Z")]
_ArgumentName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]
_ArgumentText = Annotated[str, msgspec.Meta(max_length=256)]


class _JsonSchema(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw()


class _ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    max_tokens: _OutputLimit = None
    max_completion_tokens: _OutputLimit = None
    max_output_tokens: _OutputLimit = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: _Share = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31)] | None = None
    min_p: _Share = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: _Penalty = None
    presence_penalty: _Penalty = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=2)] | None = None
    logit_bias: (
        Annotated[dict[_TokenId, Annotated[float, msgspec.Meta(ge=-100, le=100)]], msgspec.Meta(max_length=1024)] | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=4)] | None = None
    tools: Annotated[list[OfferedTool], msgspec.Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: (
        Annotated[dict[_ArgumentName, _ArgumentText | int | float | bool | None], msgspec.Meta(max_length=16)] | None
    ) = None
    cache_salt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None


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
    return ChatRequest(request.model, bool(request.stream), _job(request))


def _job(request: _Body) -> ChatJob:
    limits = (request.max_tokens, request.max_completion_tokens, request.max_output_tokens)
    toolbox = read_toolbox(request.tools, request.tool_choice, request.parallel_tool_calls)
    schema = _schema(request.response_format)
    if schema is not None and toolbox is not None:
        raise JobRefused("response_format: not supported together with tools; set tool_choice to none")
    return ChatJob(
        messages=read_messages(request.messages),
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        sampling=_sampling(request),
        stop=_stops(request.stop),
        choices=request.n or 1,
        top_logprobs=_top_logprobs(request),
        toolbox=toolbox,
        response_schema=schema,
        thinking=None if request.reasoning_effort is None else request.reasoning_effort != "none",
        template_arguments=_template_arguments(request),
        cache_salt=request.cache_salt,
    )


def _sampling(request: _Body) -> Sampling:
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        seed=request.seed,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in (request.logit_bias or {}).items()),
    )


def _top_logprobs(request: _Body) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise JobRefused("top_logprobs: needs logprobs to be true")
    return None


def _schema(response_format: _ResponseFormat | None) -> str | None:
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return _ANY_OBJECT
    wanted = response_format.json_schema
    if wanted is None:
        raise JobRefused("response_format.json_schema: missing")
    schema = bytes(wanted.schema).decode()
    if schema in ("", "null"):
        return _ANY_OBJECT
    if len(schema) > _SCHEMA_CHARACTERS_MAX:
        raise JobRefused(f"response_format: the schema may have at most {_SCHEMA_CHARACTERS_MAX} characters")
    return schema


def _template_arguments(request: _Body) -> dict[str, Scalar]:
    arguments: dict[str, Scalar] = {}
    if request.reasoning_effort is not None:
        arguments["reasoning_effort"] = request.reasoning_effort
    return arguments | (request.chat_template_kwargs or {})


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > _STOPS_MAX or any(not 1 <= len(text) <= _STOP_CHARACTERS_MAX for text in stops):
        raise JobRefused(f"stop: at most {_STOPS_MAX} texts of 1 to {_STOP_CHARACTERS_MAX} characters are allowed")
    return stops


def _without_values(error: msgspec.ValidationError) -> str:
    # "Invalid enum value 'x' - at `$.y`" quotes what was sent; the path and the rule do not.
    rule, at, path = str(error).partition(" - at ")
    # The path to a member's name is "key` in `$.y".
    member = path.strip("`").rpartition("$.")[2] if at else "the request body"
    return f"{member}: not a valid value" if rule.startswith("Invalid") else f"{member}: {rule}"
