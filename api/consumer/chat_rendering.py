"""OpenAI's chat dialect: the SSE events of a stream, the body of a whole answer (consumer API, sections 6.4 and
6.5)."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from api.consumer.answers import ChosenToken, ProviderDelta, ProviderMessage, ProviderToolCall, Whole
from api.consumer.attempt import Started
from api.consumer.chat_request import parse_chat
from api.consumer.expected import Expected
from api.consumer.inference import Finished
from api.consumer.rendering import COMMENT, Call, cost_of, proofs_of
from api.errors import envelope
from domain.errors import DarkbloomError

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def read_chat(body: dict[str, Any]) -> Call:
    """Raises InvalidRequest as ``parse_chat`` does."""
    chat = parse_chat(body)
    answer = ChatAnswer(
        model=chat.model, created=int(time.time()), include_usage=chat.include_usage, expected=chat.expected
    )
    return Call((chat,), answer)


class ChatAnswer:
    """Renders one answer. Every event of a stream carries the same id, time and model; exactly one role chunk a choice
    comes first, and the finish chunks are kept back until the money moved."""

    keep_alive = COMMENT

    def __init__(self, *, model: str, created: int, include_usage: bool, expected: Expected) -> None:
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self._with_logprobs = expected.logprobs
        self._head = b""
        self._finishes: dict[int, str] = dict.fromkeys(range(expected.choices), "")

    def start(self, started: Started) -> bytes:
        head = {
            "id": f"chatcmpl-{started.job_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }
        self._head = b"data: " + _encode(head)[:-1]
        return b"".join(self._event([_choice(index, {"role": "assistant", "content": ""})]) for index in self._finishes)

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        """The events of one machine chunk; empty when it only holds what goes out later or never."""
        parts = []
        for choice in choices:
            self._finishes[choice.index] = self._finishes[choice.index] or choice.finish_reason or ""
            said, logprobs = _said(choice.delta), self._logprobs(choice.tokens)
            if said or logprobs:
                parts.append(self._event([_choice(choice.index, said, logprobs=logprobs)]))
        return b"".join(parts)

    def finish(self, finished: Finished) -> bytes:
        """The finish chunks with the machine's proofs, the usage chunk if it was asked for, and the end of the
        stream."""
        proofs = proofs_of(finished)
        finishes = self._finishes.items()
        parts = [self._event([_choice(index, {}, reason or "stop")], **proofs) for index, reason in finishes]
        if self._include_usage:
            parts.append(self._event([], usage=usage_of(finished), **proofs))
        return b"".join(parts) + DONE

    def error(self, error: DarkbloomError) -> bytes:
        """The last event of a stream that failed; no end-of-stream line follows."""
        return b"data: " + _encode(envelope(error)) + b"\n\n"

    def whole(self, started: Started, whole: Whole, finished: Finished) -> bytes:
        body = {
            "id": f"chatcmpl-{started.job_id}",
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": choice.index,
                    "message": _message(choice.message),
                    "logprobs": self._logprobs(choice.tokens),
                    "finish_reason": choice.finish_reason or "stop",
                }
                for choice in whole.in_order()
            ],
            "usage": usage_of(finished),
            **proofs_of(finished),
        }
        return _encode(body)

    def _logprobs(self, tokens: tuple[ChosenToken, ...]) -> dict[str, Any] | None:
        return {"content": tokens, "refusal": None} if self._with_logprobs and tokens else None

    def _event(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        tail = b"," + _encode(more)[1:-1] if more else b""
        return self._head + b',"choices":' + _encode(choices) + tail + b"}\n\n"


def usage_of(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        **cost_of(finished),
    }


def _choice(
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    *,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _said(delta: ProviderMessage) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if delta.content:
        said["content"] = delta.content
    if delta.thinking:
        said["reasoning_content"] = delta.thinking
    if delta.tool_calls:
        said["tool_calls"] = [_call_piece(position, call) for position, call in enumerate(delta.tool_calls)]
    return said


def _call_piece(position: int, call: ProviderToolCall) -> dict[str, Any]:
    """The first piece of a call names it; later ones only carry arguments."""
    piece: dict[str, Any] = {"index": position if call.index is None else call.index}
    function = {"arguments": call.function.arguments or ""}
    if call.function.name:
        piece |= {"id": call.id or f"call_{piece['index']}", "type": "function"}
        function = {"name": call.function.name} | function
    return piece | {"function": function}


def _message(message: ProviderMessage) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": "assistant", "content": message.content or "", "refusal": None}
    if message.thinking:
        rendered["reasoning"] = rendered["reasoning_content"] = message.thinking
    if message.tool_calls:
        rendered["content"] = message.content or None
        rendered["tool_calls"] = [
            {
                "id": call.id or f"call_{position}",
                "type": "function",
                "function": {"name": call.function.name or "", "arguments": call.function.arguments or ""},
            }
            for position, call in enumerate(message.tool_calls)
        ]
    return rendered
