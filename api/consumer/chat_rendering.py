"""OpenAI's chat dialect: the SSE events of a stream, the body of a whole answer (consumer API, sections 6.4 and
6.5)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from api.consumer.answers import ProviderDelta, ProviderMessage, Whole
from api.consumer.attempt import Started
from api.consumer.inference import Finished
from api.errors import envelope
from domain.errors import DarkbloomError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{1,200}={0,2}")

_encode = msgspec.json.Encoder().encode


class ChatStream:
    """Renders one stream. Every event carries the same id, time and model; exactly one role chunk comes first, and the
    finish chunks are kept back until the money moved."""

    def __init__(self, *, model: str, created: int, include_usage: bool) -> None:
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self._head = b""
        self._finishes: dict[int, str] = {}

    def start(self, started: Started) -> bytes:
        head = {
            "id": f"chatcmpl-{started.job_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }
        self._head = b"data: " + _encode(head)[:-1]
        return self._event([_choice(0, {"role": "assistant", "content": ""})])

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        """The events of one machine chunk; empty when it only holds what goes out later or never."""
        parts = []
        for choice in choices:
            if choice.finish_reason:
                self._finishes.setdefault(choice.index, choice.finish_reason)
            said = _said(choice.delta)
            if said:
                parts.append(self._event([_choice(choice.index, said)]))
        return b"".join(parts)

    def finish(self, finished: Finished) -> bytes:
        """The finish chunks with the machine's proofs, the usage chunk if it was asked for, and the end of the
        stream."""
        proofs = proofs_of(finished)
        finishes = self._finishes or {0: "stop"}
        parts = [self._event([_choice(index, {}, reason)], **proofs) for index, reason in sorted(finishes.items())]
        if self._include_usage:
            parts.append(self._event([], usage=usage_of(finished), **proofs))
        return b"".join(parts) + DONE

    @staticmethod
    def error(error: DarkbloomError) -> bytes:
        """The last event of a stream that failed; no end-of-stream line follows."""
        return b"data: " + _encode(envelope(error)) + b"\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        tail = b"," + _encode(more)[1:-1] if more else b""
        return self._head + b',"choices":' + _encode(choices) + tail + b"}\n\n"


def completion_body(*, started: Started, whole: Whole, finished: Finished, model: str, created: int) -> bytes:
    """A whole answer."""
    body = {
        "id": f"chatcmpl-{started.job_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": choice.index,
                "message": _message(choice.message),
                "logprobs": None,
                "finish_reason": choice.finish_reason or "stop",
            }
            for choice in whole.choices
        ],
        "usage": usage_of(finished),
        **proofs_of(finished),
    }
    return _encode(body)


def usage_of(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def proofs_of(finished: Finished) -> dict[str, str]:
    """The machine's two proofs as it sent them, when it made both and they look like what they should be."""
    if not (_HASH.fullmatch(finished.response_hash) and _SIGNATURE.fullmatch(finished.se_signature)):
        return {}
    return {"se_signature": finished.se_signature, "response_hash": finished.response_hash}


def _choice(index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _said(delta: ProviderMessage) -> dict[str, str]:
    said = {}
    if delta.content:
        said["content"] = delta.content
    if delta.thinking:
        said["reasoning_content"] = delta.thinking
    return said


def _message(message: ProviderMessage) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": "assistant", "content": message.content or "", "refusal": None}
    if message.thinking:
        rendered["reasoning"] = rendered["reasoning_content"] = message.thinking
    return rendered
