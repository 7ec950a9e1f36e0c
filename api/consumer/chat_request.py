"""What a chat completion request may say, and what is made of it for a machine (consumer API, sections 2.8 and 6.1).

A member that this version cannot honour is refused by name: silence would hide the difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from api.consumer.expected import Expected
from api.consumer.json_schema import NoSchema, require_schema
from api.consumer.members import (
    Check,
    boolean,
    check_members,
    number,
    one_of,
    only,
    positive,
    stop_texts,
    token_limit,
    whole,
)
from api.consumer.tools_request import NAME, check_calls, check_tool_choice, check_tools, tool_names
from domain.errors import InvalidRequest

DEFAULT_OUTPUT_TOKENS = 8_192
ROUTING_OUTPUT_TOKENS = 256
"""What routing assumes of a request that names no limit."""

CHOICES_MAX = 4
TOP_LOGPROBS_MAX = 20
STOP_SEQUENCES_MAX = 4
BIASES_MAX = 1_024
MACHINES_MAX = 64
SERIAL_CHARACTERS_MAX = 128
TEMPLATE_ARGUMENTS_MAX = 16
TEMPLATE_TEXT_CHARACTERS_MAX = 256
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")

_ROLES = ("assistant", "developer", "function", "system", "tool", "user")
_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_PROMPT_MEMBERS = ("messages", "system", "instructions", "input", "prompt", "response_format", "chat_template_kwargs")
_WHOLE = ("n", "seed", "top_k", "top_logprobs")
_NOT_FORWARDED = frozenset(
    {
        *_OUTPUT_LIMITS,
        "best_of",
        "cache_salt",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "provider_serial",
        "provider_serials",
        "min_trust",
        "stream_options",
        "endpoint",
    }
)
TEMPLATE_ARGUMENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TEMPLATES_OWN = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""What a machine itself says to its chat template."""


class ChatRequest(msgspec.Struct, frozen=True):
    """A valid request. ``output_limit`` is for each choice and None when the client set none; ``prompt_bytes`` counts
    every member that reaches the prompt but for the tools, ``message_count`` its messages. ``allowed`` are the machines
    that it may go to, empty for any."""

    body: dict[str, Any]
    model: str
    expected: Expected
    include_usage: bool
    output_limit: int | None
    prompt_bytes: int
    tools_bytes: int
    prompt_estimate: int
    message_count: int
    allowed: tuple[str, ...]


def parse_chat(body: dict[str, Any], *, stops_max: int = STOP_SEQUENCES_MAX) -> ChatRequest:
    """Check a chat completion body. ``stops_max`` is how many stop sequences its dialect allows.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault. What it held is not repeated.
    """
    model = model_in(body)
    _check_messages(body.get("messages"))
    check_members(body, _CHECKS)
    check_tool_choice(body.get("tool_choice"), body.get("tools"))
    _refuse_a_format_beside_tools(body)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    stop = body.get("stop")
    stops = stop_texts("stop", [stop] if isinstance(stop, str) else stop, stops_max)
    options = body.get("stream_options") or {}
    prompt_bytes = sum(_size_of(body[name]) for name in _PROMPT_MEMBERS if body.get(name) is not None)
    tools_bytes = _size_of(body["tools"]) if body.get("tools") else 0
    return ChatRequest(
        body=body,
        model=model,
        expected=Expected(
            stream=bool(body.get("stream")),
            choices=int(body.get("n") or 1),
            stop_bytes=max((len(text.encode()) for text in stops), default=0),
            tools=tool_names(body.get("tools")),
            logprobs=bool(body.get("logprobs")),
        ),
        include_usage=bool(options.get("include_usage")),
        output_limit=next((int(body[name]) for name in _OUTPUT_LIMITS if body.get(name)), None),
        prompt_bytes=prompt_bytes,
        tools_bytes=tools_bytes,
        prompt_estimate=max(1, (prompt_bytes + tools_bytes) // 4),
        message_count=len(body["messages"]),
        allowed=provider_serials(body),
    )


def parse_lowered(
    body: dict[str, Any], instead: Mapping[str, str], *, stops_max: int = STOP_SEQUENCES_MAX
) -> ChatRequest:
    """Check what another dialect was lowered to. ``instead`` maps members of a chat to those that they came from.

    Raises:
        InvalidRequest: as ``parse_chat`` does, in the words of the dialect.
    """
    try:
        return parse_chat(body, stops_max=stops_max)
    except InvalidRequest as error:
        if error.param is None or error.param not in instead:
            raise
        name = instead[error.param]
        raise InvalidRequest(error.message.replace(error.param, name), param=name) from None


def model_in(body: dict[str, Any]) -> str:
    """The model that a body of any dialect names."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must name a model; GET /v1/models lists them.", param="model")
    return model


def body_for_machine(request: ChatRequest, output_limit: int, cache_salt: str) -> bytes:
    """The JSON that is sealed to the machine: exactly one output limit, and nothing that names the caller.

    ``cache_salt`` tells a machine which requests may share what it cached of their prompts.
    """
    forwarded = {name: value for name, value in request.body.items() if name not in _NOT_FORWARDED}
    forwarded |= {name: int(forwarded[name]) for name in _WHOLE if forwarded.get(name) is not None}
    forwarded |= {"max_tokens": output_limit, "cache_salt": cache_salt}
    if isinstance(forwarded.get("stop"), str):
        forwarded["stop"] = [forwarded["stop"]]
    return msgspec.json.encode(forwarded)


def _size_of(value: Any) -> int:
    return len(value.encode()) if isinstance(value, str) else len(msgspec.json.encode(value))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list with at least one message.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise InvalidRequest(
                f"messages[{index}] must be an object whose role is one of {', '.join(_ROLES)}.",
                param="messages",
            )
        check_calls(f"messages[{index}]", message)
        _check_content(index, message)


def _check_content(index: int, message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message["role"] == "assistant"):
        return
    if not isinstance(content, list) or not content:
        raise InvalidRequest(f"messages[{index}].content must be a text or a list of parts.", param="messages")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"messages[{index}] has a content part that this model cannot read; only text parts are supported.",
                param="messages",
            )


def _refuse_a_format_beside_tools(body: dict[str, Any]) -> None:
    """No machine can hold one answer to a schema and leave it free to call a tool instead."""
    kind = (body.get("response_format") or {}).get("type", "text")
    if kind != "text" and body.get("tools") and body.get("tool_choice") != "none":
        raise InvalidRequest(
            "'response_format' is not supported together with tools; leave one of them out, or set 'tool_choice' to "
            "none.",
            param="response_format",
        )


def provider_serials(body: dict[str, Any]) -> tuple[str, ...]:
    """The machines that a request is restricted to, trimmed and each once (consumer API, section 5.6).

    Raises:
        InvalidRequest: not a text or a list of texts, or nothing is left of it.
    """
    found: dict[str, None] = {}
    for name in ("provider_serial", "provider_serials"):
        value = body.get(name)
        if value is None:
            continue
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest(f"'{name}' must be a serial number or a machine's id, or a list of them.", param=name)
        serials = [text.strip() for text in texts if text.strip()]
        if not serials:
            raise InvalidRequest(f"'{name}' names no machine.", param=name)
        if len(serials) > MACHINES_MAX or any(len(serial) > SERIAL_CHARACTERS_MAX for serial in serials):
            raise InvalidRequest(
                f"'{name}' may name {MACHINES_MAX} machines, with {SERIAL_CHARACTERS_MAX} characters each.", param=name
            )
        found |= dict.fromkeys(serials)
    return tuple(found)


def _stream_options(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise InvalidRequest("'stream_options' must be an object.", param=name)
    if value.get("include_usage") is not None:
        boolean("stream_options", value["include_usage"])


def _response_format(name: str, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequest("'response_format.type' must be text, json_object or json_schema.", param=name)
    if kind != "json_schema":
        return
    given = value.get("json_schema")
    schema_name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(schema_name, str) or not NAME.fullmatch(schema_name):
        raise InvalidRequest(
            "'response_format.json_schema' needs a name of 1 to 64 letters, digits, '_' and '-'.", param=name
        )
    if given.get("strict") is not None:
        boolean(name, given["strict"])
    try:
        require_schema(given.get("schema"))
    except NoSchema as fault:
        raise InvalidRequest(f"'response_format' holds no JSON schema: {fault}.", param=name) from None


def _logit_bias(name: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > BIASES_MAX or not all(_is_bias(*one) for one in value.items()):
        raise InvalidRequest(
            f"'{name}' must map at most {BIASES_MAX} ids of tokens to numbers from -100 to 100.", param=name
        )


def _is_bias(token: str, bias: Any) -> bool:
    is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
    return token.isascii() and token.isdecimal() and len(token) <= 9 and is_number and -100 <= bias <= 100


def _template_arguments(name: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > TEMPLATE_ARGUMENTS_MAX:
        raise InvalidRequest(f"'{name}' must be an object of at most {TEMPLATE_ARGUMENTS_MAX} members.", param=name)
    for argument, given in value.items():
        is_long = isinstance(given, str) and len(given) > TEMPLATE_TEXT_CHARACTERS_MAX
        if is_long or not (given is None or isinstance(given, bool | int | float | str)):
            raise InvalidRequest(f"'{name}' may only hold booleans, numbers and short texts.", param=name)
        if not TEMPLATE_ARGUMENT.fullmatch(argument) or argument in _TEMPLATES_OWN:
            raise InvalidRequest(f"'{name}' has a member that is not for clients to set.", param=name)


_CHECKS: Mapping[str, Check] = {
    "stream": boolean,
    "stream_options": _stream_options,
    **dict.fromkeys(_OUTPUT_LIMITS, token_limit),
    "temperature": number(0, 2),
    "top_p": positive(1),
    "top_k": whole(-1, 2**31 - 1),
    "min_p": number(0, 1),
    "seed": whole(-(2**63), 2**63 - 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "logit_bias": _logit_bias,
    "n": whole(1, CHOICES_MAX),
    "best_of": only((1,), "Choosing among more answers than are given is"),
    "response_format": _response_format,
    "logprobs": boolean,
    "top_logprobs": whole(0, TOP_LOGPROBS_MAX),
    "tools": check_tools,
    "parallel_tool_calls": boolean,
    "functions": only(([],), "Functions are"),
    "function_call": only(("none",), "Functions are"),
    "reasoning_effort": one_of(*EFFORTS),
    "chat_template_kwargs": _template_arguments,
    "modalities": only((["text"],), "Output other than text is"),
    "audio": only((), "Audio output is"),
    "prediction": only((), "Predicted output is"),
    "web_search_options": only((), "Web search is"),
    "verbosity": only(("medium",), "Choosing a verbosity is"),
    "moderation": only((), "Moderation is"),
    "repetition_penalty": positive(2),
    "min_trust": only((), "Choosing a trust level is"),
}
