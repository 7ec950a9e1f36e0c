"""What a chat completion request may say, and what is made of it for a machine (consumer API, sections 2.8 and 6.1).

A member that this version cannot honour is refused by name: silence would hide the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from domain.errors import InvalidRequest

DEFAULT_OUTPUT_TOKENS = 8_192
ROUTING_OUTPUT_TOKENS = 256
"""What routing assumes of a request that names no limit."""

STOP_SEQUENCES_MAX = 4
STOP_CHARACTERS_MAX = 1_024
_ROLES = ("assistant", "developer", "function", "system", "tool", "user")
_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_PROMPT_MEMBERS = ("messages", "system", "instructions", "input", "prompt", "tools")
_NOT_FORWARDED = frozenset(
    {
        *_OUTPUT_LIMITS,
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


class ChatRequest(msgspec.Struct, frozen=True):
    """A valid request. ``output_limit`` is None when the client set none; ``prompt_bytes`` counts every member that
    reaches the prompt, ``message_count`` its messages; ``stop_bytes`` is the longest stop sequence."""

    body: dict[str, Any]
    model: str
    stream: bool
    include_usage: bool
    output_limit: int | None
    prompt_bytes: int
    prompt_estimate: int
    message_count: int
    stop_bytes: int


def parse_chat(body: dict[str, Any], *, stops_max: int = STOP_SEQUENCES_MAX) -> ChatRequest:
    """Check a chat completion body. ``stops_max`` is how many stop sequences its dialect allows.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault. What it held is not repeated.
    """
    model = model_in(body)
    _check_messages(body.get("messages"))
    for name, check in _CHECKS.items():
        if body.get(name) is not None:
            check(name, body[name])
    stop = body.get("stop")
    stops = stop_texts("stop", [stop] if isinstance(stop, str) else stop, stops_max)
    _refuse_a_choice_of_machine(body)
    options = body.get("stream_options") or {}
    prompt_bytes = sum(_size_of(body[name]) for name in _PROMPT_MEMBERS if body.get(name) is not None)
    return ChatRequest(
        body=body,
        model=model,
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        output_limit=next((int(body[name]) for name in _OUTPUT_LIMITS if body.get(name)), None),
        prompt_bytes=prompt_bytes,
        prompt_estimate=max(1, prompt_bytes // 4),
        message_count=len(body["messages"]),
        stop_bytes=max((len(text.encode()) for text in stops), default=0),
    )


def model_in(body: dict[str, Any]) -> str:
    """The model that a body of any dialect names."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must name a model; GET /v1/models lists them.", param="model")
    return model


def refuse(body: dict[str, Any], members: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Refuse members by name. Each has the values that ask for nothing, and a sentence's beginning that says what is
    not supported."""
    for name, (neutral, what) in members.items():
        if body.get(name) is not None:
            _only(neutral, what)(name, body[name])


def body_for_machine(request: ChatRequest, output_limit: int) -> bytes:
    """The JSON that is sealed to the machine: exactly one output limit, and nothing that names the caller."""
    forwarded = {name: value for name, value in request.body.items() if name not in _NOT_FORWARDED}
    forwarded["max_tokens"] = output_limit
    if forwarded.get("seed") is not None:
        forwarded["seed"] = int(forwarded["seed"])
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
        _check_content(index, message)


def _check_content(index: int, message: dict[str, Any]) -> None:
    for name in ("tool_calls", "function_call"):
        if message.get(name):
            raise InvalidRequest(f"messages[{index}].{name}: tools are not supported here.", param="messages")
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


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)


def _is_whole(value: Any) -> bool:
    """In JSON, 16.0 is a whole number too."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def whole_number(name: str, found: Any, low: int, high: int) -> int | None:
    """A member that may be left out or null. Raises InvalidRequest."""
    if found is None:
        return None
    if not _is_whole(found) or not low <= found <= high:
        raise InvalidRequest(f"'{name}' must be a whole number from {low} to {high}.", param=name)
    return int(found)


def _token_limit(name: str, value: Any) -> None:
    if not _is_whole(value) or not 0 <= value < 2**31:
        raise InvalidRequest(f"'{name}' must be a whole number of tokens.", param=name)


def _number(low: float, high: float) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidRequest(f"'{name}' must be a number from {low:g} to {high:g}.", param=name)

    return check


def _top_p(name: str, value: Any) -> None:
    _number(0, 1)(name, value)
    if value == 0:
        raise InvalidRequest("'top_p' must be above 0.", param=name)


def _seed(name: str, value: Any) -> None:
    if not _is_whole(value) or not -(2**63) <= value < 2**63:
        raise InvalidRequest("'seed' must be a whole number of 64 bits.", param=name)


def stop_texts(name: str, value: Any, texts_max: int) -> list[str]:
    """The stop sequences in a list of them. Raises InvalidRequest."""
    texts = [] if value is None else value
    if (
        not isinstance(texts, list)
        or len(texts) > texts_max
        or not all(isinstance(text, str) and 1 <= len(text) <= STOP_CHARACTERS_MAX for text in texts)
    ):
        raise InvalidRequest(
            f"'{name}' must be up to {texts_max} texts of 1 to {STOP_CHARACTERS_MAX} characters.", param=name
        )
    return texts


def _refuse_a_choice_of_machine(body: dict[str, Any]) -> None:
    if provider_serials(body):
        name = "provider_serial" if body.get("provider_serial") is not None else "provider_serials"
        raise InvalidRequest(f"Choosing a machine is not supported here; leave '{name}' out.", param=name)


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
            raise InvalidRequest(f"'{name}' must be a serial number or a list of them.", param=name)
        serials = [text.strip() for text in texts if text.strip()]
        if not serials:
            raise InvalidRequest(f"'{name}' names no machine.", param=name)
        found |= dict.fromkeys(serials)
    return tuple(found)


def _stream_options(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise InvalidRequest("'stream_options' must be an object.", param=name)
    if value.get("include_usage") is not None:
        _boolean("stream_options", value["include_usage"])


def _only(neutral: tuple[Any, ...], what: str) -> Callable[[str, Any], None]:
    """Lets through what asks for nothing."""

    def check(name: str, value: Any) -> None:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            raise InvalidRequest(f"{what} not supported here; leave '{name}' out.", param=name)

    return check


_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "stream": _boolean,
    "stream_options": _stream_options,
    **dict.fromkeys(_OUTPUT_LIMITS, _token_limit),
    "temperature": _number(0, 2),
    "top_p": _top_p,
    "seed": _seed,
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "n": _only((1,), "More than one choice is"),
    "best_of": _only((1,), "More than one choice is"),
    "response_format": _only(({"type": "text"},), "A response format other than plain text is"),
    "logprobs": _only((False,), "Log probabilities are"),
    "top_logprobs": _only((0,), "Log probabilities are"),
    "logit_bias": _only(({},), "Token biases are"),
    "tools": _only(([],), "Tools are"),
    "tool_choice": _only(("none", "auto"), "Tools are"),
    "functions": _only(([],), "Functions are"),
    "function_call": _only(("none",), "Functions are"),
    "modalities": _only((["text"],), "Output other than text is"),
    "audio": _only((), "Audio output is"),
    "prediction": _only((), "Predicted output is"),
    "web_search_options": _only((), "Web search is"),
    "verbosity": _only(("medium",), "Choosing a verbosity is"),
    "moderation": _only((), "Moderation is"),
    "reasoning_effort": _only(("none",), "Reasoning effort is"),
    "top_k": _only((0, -1), "Top-k sampling is"),
    "min_p": _only((0,), "Min-p sampling is"),
    "repetition_penalty": _only((1,), "A repetition penalty is"),
    "min_trust": _only((), "Choosing a trust level is"),
}
