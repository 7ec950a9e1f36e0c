"""Reads the body of a transcription request and writes the transcript (``POST /v1/audio/transcriptions``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from agent.dialects.task import Task, read
from agent.engine.media import SpeechJob, Transcript
from domain.kinds import TRANSCRIPTION


class _Body(msgspec.Struct):
    model: str
    audio: Annotated[bytes, msgspec.Meta(min_length=1)]
    format: Annotated[str, msgspec.Meta(max_length=16)]
    stated_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None
    language: str | None = None
    prompt: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


_decoder = msgspec.json.Decoder(_Body)


def parse(body: bytes) -> Task:
    """Raises JobRefused."""
    asked = read(_decoder, body)
    job = SpeechJob(
        sound=asked.audio,
        audio_format=asked.format,
        stated_ms=asked.stated_ms,
        language=asked.language,
        prompt=asked.prompt,
        temperature=asked.temperature,
    )
    return Task(asked.model, TRANSCRIPTION, job, _write)


def _write(transcript: Transcript) -> Iterable[bytes]:
    yield b"data: " + msgspec.json.encode(
        {
            "text": transcript.text,
            "language": transcript.language,
            "duration": transcript.duration,
            "segments": transcript.segments,
        }
    )
