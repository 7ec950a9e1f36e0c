"""OpenAI's legacy dialect: text completions, streamed and whole (consumer API, section 8.2)."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from api.consumer.answers import ChosenToken, ProviderDelta, ProviderMessage, Whole
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
    first = request.chats[0]
    answer = CompletionAnswer(
        model=first.model,
        created=int(time.time()),
        include_usage=first.include_usage,
        echoes=tuple(echo for echo in request.echoes for _ in range(first.expected.choices)),
        with_logprobs=first.expected.logprobs,
    )
    return Call(request.chats, answer)


class CompletionAnswer:
    """Renders the choices of one answer, each behind its echo. A model's reasoning has no place in this dialect; it
    stands beside the text as ``reasoning_content``."""

    keep_alive = COMMENT

    def __init__(
        self, *, model: str, created: int, include_usage: bool, echoes: tuple[str, ...], with_logprobs: bool
    ) -> None:
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self._echoes = echoes
        self._with_logprobs = with_logprobs
        self._head: dict[str, Any] = {}
        self._finish_reasons = [""] * len(echoes)
        self._text_offsets = [len(echo) for echo in echoes]

    def start(self, started: Started) -> bytes:
        self._head = self._members(started)
        echoed = [(index, echo) for index, echo in enumerate(self._echoes) if echo]
        return b"".join(self._event([_choice(index, {"text": echo})]) for index, echo in echoed)

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        parts = []
        for choice in choices:
            index = choice.index
            self._finish_reasons[index] = self._finish_reasons[index] or choice.finish_reason or ""
            said, logprobs = _said(choice.delta), self._logprobs(index, choice.tokens)
            if said["text"] or len(said) > 1 or logprobs:
                parts.append(self._event([_choice(index, said, logprobs=logprobs)]))
        return b"".join(parts)

    def finish(self, finished: Finished) -> bytes:
        proofs = proofs_of(finished)
        events = b"".join(
            self._event([_choice(index, {"text": ""}, reason or "stop")], **proofs)
            for index, reason in enumerate(self._finish_reasons)
        )
        if self._include_usage:
            events += self._event([], usage=usage_of(finished), **proofs)
        return events + DONE

    def error(self, error: DarkbloomError) -> bytes:
        return b"data: " + _encode(envelope(error)) + b"\n\n"

    def whole(self, started: Started, whole: Whole, finished: Finished) -> bytes:
        choices = []
        for choice in whole.in_order():
            said, logprobs = _said(choice.message), self._logprobs(choice.index, choice.tokens)
            said["text"] = self._echoes[choice.index] + said["text"]
            choices.append(_choice(choice.index, said, choice.finish_reason or "stop", logprobs=logprobs))
        body = self._members(started) | {"choices": choices, "usage": usage_of(finished)} | proofs_of(finished)
        return _encode(body)

    def _members(self, started: Started) -> dict[str, Any]:
        return {
            "id": f"cmpl-{started.job_id}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
        }

    def _logprobs(self, index: int, tokens: tuple[ChosenToken, ...]) -> dict[str, Any] | None:
        """Lists side by side, as this dialect has them; an offset counts the characters in front of a token."""
        if not (self._with_logprobs and tokens):
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._text_offsets[index])
            self._text_offsets[index] += len(token.token)
        likeliest = [{likely.token: likely.logprob for likely in token.top_logprobs} for token in tokens]
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": likeliest if any(likeliest) else None,
            "text_offset": offsets,
        }

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _encode(self._head | {"choices": choices} | more) + b"\n\n"


def _choice(
    index: int, said: dict[str, str], finish_reason: str | None = None, *, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}


def _said(message: ProviderMessage) -> dict[str, str]:
    said = {"text": message.content or ""}
    return said | ({"reasoning_content": message.thinking} if message.thinking else {})
