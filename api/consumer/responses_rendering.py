"""The Responses dialect: numbered events that build up a response object (consumer API, sections 7.2 and 7.3)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from api.consumer.answers import ChosenToken, ProviderDelta, Whole, WholeChoice
from api.consumer.attempt import Started
from api.consumer.inference import Finished
from api.consumer.rendering import COMMENT, Call, cost_of, proofs_of
from api.consumer.responses_request import parse_responses
from api.consumer.segments import Closed, Opened, Said, Segment, Segments, Step, segments_of
from domain.errors import DarkbloomError

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PREFIXES = {"reasoning": "rs", "text": "msg", "tool_call": "fc"}

_encode = msgspec.json.Encoder().encode


def read_responses(body: dict[str, Any]) -> Call:
    """Raises InvalidRequest as ``parse_responses`` does."""
    request = parse_responses(body)
    answer = ResponsesAnswer(
        request.chat.model, int(time.time()), request.echoed, with_logprobs=request.chat.expected.logprobs
    )
    return Call((request.chat,), answer)


class ResponsesAnswer:
    """Renders one answer. Every event carries the next number; the response object keeps one id."""

    keep_alive = COMMENT

    def __init__(self, model: str, created: int, echoed: dict[str, Any], *, with_logprobs: bool) -> None:
        self._model = model
        self._created = created
        self._echoed = echoed
        self._with_logprobs = with_logprobs
        self._key = ""
        self._number = 0
        self._segments = Segments()
        self._finish_reason = "stop"

    def start(self, started: Started) -> bytes:
        self._key = _key_of(started)
        response = self._response("in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        rendered = b""
        for choice in choices:
            self._finish_reason = choice.finish_reason or self._finish_reason
            rendered += self._steps(self._segments.feed(choice.delta, self._tokens(choice)))
        return rendered

    def finish(self, finished: Finished) -> bytes:
        closing = self._steps(self._segments.close())
        response = self._ended(self._finish_reason, self._segments.closed, finished)
        return closing + self._event(f"response.{response['status']}", response=response)

    def error(self, error: DarkbloomError) -> bytes:
        output = [self._item(segment, "completed") for segment in self._segments.closed]
        failure = {"code": error.wire_code, "message": error.message}
        return self._event("response.failed", response=self._response("failed", output, error=failure))

    def whole(self, started: Started, whole: Whole, finished: Finished) -> bytes:
        self._key = _key_of(started)
        choice = whole.choices[0]
        segments = segments_of(choice.message, self._tokens(choice))
        return _encode(self._ended(choice.finish_reason or "stop", segments, finished))

    def _tokens(self, choice: ProviderDelta | WholeChoice) -> tuple[ChosenToken, ...]:
        return choice.tokens if self._with_logprobs else ()

    # --- the response object -----------------------------------------------------------------------------------------

    def _ended(self, finish_reason: str, segments: list[Segment], finished: Finished) -> dict[str, Any]:
        reason = _INCOMPLETE.get(finish_reason)
        status = "incomplete" if reason else "completed"
        last = len(segments) - 1
        output = [
            self._item(segment, status if index == last else "completed") for index, segment in enumerate(segments)
        ]
        details = {"reason": reason} if reason else None
        response = self._response(status, output, incomplete_details=details, usage=_usage(finished))
        return response | proofs_of(finished)

    def _response(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{self._key}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            **self._echoed,
            "output": output,
            "usage": None,
            **more,
        }

    def _item(self, segment: Segment, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(segment), "status": status}
        match segment.kind:
            case "reasoning":
                return item | {"type": "reasoning", "summary": [_summary(segment.text)]}
            case "tool_call":
                call = {"call_id": segment.call_id, "name": segment.name, "arguments": segment.text}
                return item | {"type": "function_call"} | call
        return item | {"type": "message", "role": "assistant", "content": [_text(segment.text, segment.tokens)]}

    def _item_id(self, segment: Segment) -> str:
        return f"{_PREFIXES[segment.kind]}_{self._key}_{segment.index}"

    # --- events ------------------------------------------------------------------------------------------------------

    def _event(self, name: str, /, **members: Any) -> bytes:
        body = {"type": name, "sequence_number": self._number} | members
        self._number += 1
        return b"event: " + name.encode() + b"\ndata: " + _encode(body) + b"\n\n"

    def _steps(self, steps: Iterable[Step]) -> bytes:
        parts = []
        for step in steps:
            match step:
                case Opened(segment):
                    parts.append(self._opened(segment))
                case Said():
                    parts.append(self._said(step))
                case Closed(segment):
                    parts.append(self._closed(segment))
        return b"".join(parts)

    def _opened(self, segment: Segment) -> bytes:
        item = self._item(segment, "in_progress")
        at = {"item_id": item["id"], "output_index": segment.index}
        match segment.kind:
            case "reasoning":
                opened = self._event("response.output_item.added", output_index=segment.index, item=item | _NO_SUMMARY)
                return opened + self._event(
                    "response.reasoning_summary_part.added", **at, summary_index=0, part=_summary("")
                )
            case "tool_call":
                return self._event("response.output_item.added", output_index=segment.index, item=item)
        opened = self._event("response.output_item.added", output_index=segment.index, item=item | _NO_CONTENT)
        return opened + self._event("response.content_part.added", **at, content_index=0, part=_text(""))

    def _said(self, said: Said) -> bytes:
        segment, piece = said.segment, said.piece
        at = {"item_id": self._item_id(segment), "output_index": segment.index}
        match segment.kind:
            case "reasoning":
                return self._event("response.reasoning_summary_text.delta", **at, summary_index=0, delta=piece)
            case "tool_call":
                return self._event("response.function_call_arguments.delta", **at, delta=piece)
        return self._event("response.output_text.delta", **at, content_index=0, delta=piece, logprobs=said.tokens)

    def _closed(self, segment: Segment) -> bytes:
        status = "incomplete" if self._finish_reason in _INCOMPLETE else "completed"
        item = self._item(segment, status)
        at = {"item_id": item["id"], "output_index": segment.index}
        match segment.kind:
            case "reasoning":
                done = self._event(
                    "response.reasoning_summary_text.done", **at, summary_index=0, text=segment.text
                ) + self._event(
                    "response.reasoning_summary_part.done", **at, summary_index=0, part=_summary(segment.text)
                )
            case "tool_call":
                done = self._event(
                    "response.function_call_arguments.done", **at, name=segment.name, arguments=segment.text
                )
            case _:
                done = self._event(
                    "response.output_text.done", **at, content_index=0, text=segment.text, logprobs=segment.tokens
                ) + self._event(
                    "response.content_part.done", **at, content_index=0, part=_text(segment.text, segment.tokens)
                )
        return done + self._event("response.output_item.done", output_index=segment.index, item=item)


_NO_SUMMARY: dict[str, Any] = {"summary": []}
_NO_CONTENT: dict[str, Any] = {"content": []}


def _key_of(started: Started) -> str:
    return started.job_id.replace("-", "")


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _text(text: str, tokens: list[ChosenToken] | None = None) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return part | ({"logprobs": tokens} if tokens else {})


def _usage(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **cost_of(finished),
    }
