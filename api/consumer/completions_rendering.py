"""OpenAI's legacy dialect: text completions, streamed and whole (consumer API, section 8.2)."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from api.consumer.answers import ProviderDelta, ProviderMessage, Whole
from api.consumer.attempt import Started
from api.consumer.chat_rendering import DONE, usage_of
from api.consumer.completions_request import parse_completion
from api.consumer.inference import Finished
from api.consumer.rendering import COMMENT, Call, proofs_of
from api.errors import envelope
from domain.errors import DarkbloomError

_encode = msgspec.json.Encoder().encode


def read_completion(body: dict[str, Any]) -> Call:
    """Raises InvalidRequest as ``parse_completion`` does."""
    request = parse_completion(body)
    chat = request.chat
    answer = CompletionAnswer(
        model=chat.model, created=int(time.time()), include_usage=chat.include_usage, echo=request.echo
    )
    return Call(chat, answer)


class CompletionAnswer:
    """Renders one answer. A model's reasoning has no place in this dialect; it stands beside the text as
    ``reasoning_content``."""

    keep_alive = COMMENT

    def __init__(self, *, model: str, created: int, include_usage: bool, echo: str) -> None:
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self._echo = echo
        self._head: dict[str, Any] = {}
        self._finish_reason = "stop"

    def start(self, started: Started) -> bytes:
        self._head = self._members(started)
        return self._event([_choice({"text": self._echo})]) if self._echo else b""

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        parts = []
        for choice in choices:
            self._finish_reason = choice.finish_reason or self._finish_reason
            said = _said(choice.delta)
            if said["text"] or len(said) > 1:
                parts.append(self._event([_choice(said)]))
        return b"".join(parts)

    def finish(self, finished: Finished) -> bytes:
        proofs = proofs_of(finished)
        events = self._event([_choice({"text": ""}, self._finish_reason)], **proofs)
        if self._include_usage:
            events += self._event([], usage=usage_of(finished), **proofs)
        return events + DONE

    def error(self, error: DarkbloomError) -> bytes:
        return b"data: " + _encode(envelope(error)) + b"\n\n"

    def whole(self, started: Started, whole: Whole, finished: Finished) -> bytes:
        choices = []
        for choice in whole.choices:
            said = _said(choice.message)
            said["text"] = self._echo + said["text"]
            choices.append(_choice(said, choice.finish_reason or "stop", choice.index))
        body = self._members(started) | {"choices": choices, "usage": usage_of(finished)} | proofs_of(finished)
        return _encode(body)

    def _members(self, started: Started) -> dict[str, Any]:
        return {
            "id": f"cmpl-{started.job_id}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
        }

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _encode(self._head | {"choices": choices} | more) + b"\n\n"


def _choice(said: dict[str, str], finish_reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}


def _said(message: ProviderMessage) -> dict[str, str]:
    said = {"text": message.content or ""}
    return said | ({"reasoning_content": message.thinking} if message.thinking else {})
