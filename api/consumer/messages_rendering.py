"""Anthropic's dialect: named events with blocks in a stream, a message with blocks as a whole (consumer API, sections
9.2 and 9.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from api.consumer.answers import ProviderDelta, Whole
from api.consumer.attempt import Started
from api.consumer.inference import Finished
from api.consumer.messages_request import parse_messages
from api.consumer.rendering import Call, cost_of, proofs_of
from api.consumer.segments import Closed, Opened, Said, Segment, Segments, Step, segments_of
from api.errors import anthropic_envelope
from domain.errors import AttemptTimedOut, DarkbloomError

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_call": ("input_json_delta", "partial_json"),
}

_encode = msgspec.json.Encoder().encode


def read_messages(body: dict[str, Any]) -> Call:
    """Raises InvalidRequest as ``parse_messages`` does."""
    request = parse_messages(body)
    answer = MessagesAnswer(
        model=request.chat.model,
        input_estimate=request.chat.prompt_estimate,
        with_thinking=request.with_thinking,
        stop_sequences=request.stop_sequences,
    )
    return Call((request.chat,), answer)


class MessagesAnswer:
    """Renders one answer. ``input_estimate`` is the count of input tokens until the real one is known."""

    keep_alive = PING

    def __init__(
        self, *, model: str, input_estimate: int, with_thinking: bool, stop_sequences: tuple[str, ...]
    ) -> None:
        self._model = model
        self._input_estimate = input_estimate
        self._with_thinking = with_thinking
        self._stop_sequences = stop_sequences
        self._segments = Segments(with_reasoning=with_thinking)
        self._pinged = False
        self._end = ProviderDelta()

    def start(self, started: Started) -> bytes:
        usage = {"input_tokens": self._input_estimate, "output_tokens": 0}
        message = self._message(started, content=[], stop_reason=None, stop_sequence=None, usage=usage)
        return _event("message_start", message=message)

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        rendered = b""
        for choice in choices:
            if choice.finish_reason:
                self._end = choice
            rendered += self._steps(self._segments.feed(choice.delta))
        return rendered

    def finish(self, finished: Finished) -> bytes:
        return (
            self._steps(self._segments.close())
            + _event("message_delta", delta=self._stop_of(self._end), usage=_usage(finished), **proofs_of(finished))
            + _event("message_stop")
        )

    def error(self, error: DarkbloomError) -> bytes:
        body = anthropic_envelope(error)
        if isinstance(error, AttemptTimedOut):
            body["error"]["type"] = "overloaded_error"
        return b"event: error\ndata: " + _encode(body) + b"\n\n"

    def whole(self, started: Started, whole: Whole, finished: Finished) -> bytes:
        choice = whole.choices[0]
        content = [_block(part) for part in segments_of(choice.message, with_reasoning=self._with_thinking)]
        message = self._message(
            started,
            content=content,
            **self._stop_of(choice),
            usage=_usage(finished),
            **proofs_of(finished),
        )
        return _encode(message)

    def _message(self, started: Started, **more: Any) -> dict[str, Any]:
        message_id = "msg_" + started.job_id.replace("-", "")
        return {"id": message_id, "type": "message", "role": "assistant", "model": self._model, **more}

    def _steps(self, steps: Iterable[Step]) -> bytes:
        parts = []
        for step in steps:
            match step:
                case Opened(segment):
                    parts.append(_event("content_block_start", index=segment.index, content_block=_empty(segment)))
                    if not self._pinged:
                        parts.append(PING)
                    self._pinged = True
                case Said(segment, piece):
                    kind, member = _DELTAS[segment.kind]
                    parts.append(
                        _event("content_block_delta", index=segment.index, delta={"type": kind, member: piece})
                    )
                case Closed(segment):
                    parts.append(_event("content_block_stop", index=segment.index))
        return b"".join(parts)

    def _stop_of(self, choice: Any) -> dict[str, Any]:
        """Why the answer ended. Only an engine that names the stop sequence it met lets it be told from a plain end."""
        reason = _STOP_REASONS.get(choice.finish_reason or "stop", "end_turn")
        if reason == "end_turn" and choice.stop_reason in self._stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
        return {"stop_reason": reason, "stop_sequence": None}


def _event(name: str, /, **members: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode({"type": name} | members) + b"\n\n"


def _usage(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        **({"cache_read_input_tokens": usage.cached_tokens} if usage.cached_tokens else {}),
        **cost_of(finished),
    }


def _empty(segment: Segment) -> dict[str, Any]:
    """A block as it opens."""
    match segment.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "tool_call":
            return {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": {}}
    return {"type": "text", "text": ""}


def _block(segment: Segment) -> dict[str, Any]:
    """A block as it is when it is complete."""
    match segment.kind:
        case "reasoning":
            return _empty(segment) | {"thinking": segment.text}
        case "tool_call":
            return _empty(segment) | {"input": _arguments(segment.text)}
    return _empty(segment) | {"text": segment.text}


def _arguments(text: str) -> dict[str, Any]:
    """A tool call's arguments as an object; what the model wrote is never lost, even when it is none."""
    try:
        arguments = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        arguments = text
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}
