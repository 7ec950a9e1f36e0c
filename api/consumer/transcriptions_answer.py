"""The transcript that a machine made, from its one chunk to each response format (consumer API, section 11.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from api.consumer.answers import Made, decoded
from api.consumer.inference import Finished
from api.consumer.rendering import cost_of, proofs_of
from api.consumer.transcriptions_request import ResponseFormat, TranscriptionRequest

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Segment(msgspec.Struct, frozen=True):
    """``start`` and ``end`` are seconds; the other figures are Whisper's own."""

    start: _Seconds
    end: _Seconds
    text: str
    seek: int = 0
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0


class _Payload(msgspec.Struct):
    text: str
    duration: _Seconds
    language: str = ""
    segments: list[Segment] = []


class Transcript(Made, frozen=True, kw_only=True):
    """``duration`` is seconds, as the machine heard them."""

    text: str
    duration: float
    language: str
    segments: list[Segment]


_payload = msgspec.json.Decoder(_Payload)


class TranscriptReader:
    """Reads one machine's answer. What can be charged is what the gateway itself knows of the sound."""

    def __init__(self, request: TranscriptionRequest) -> None:
        self._bound_ms = request.bound_ms

    def __call__(self, text: bytes) -> Transcript:
        read = decoded(_payload, text)
        return Transcript(
            units=self._bound_ms,
            text=read.text.strip(),
            duration=read.duration,
            language=read.language,
            segments=read.segments,
        )


def _json(transcript: Transcript, finished: Finished) -> bytes:
    usage = {"type": "duration", "seconds": finished.usage.units / 1000, **cost_of(finished)}
    return msgspec.json.encode({"text": transcript.text, "usage": usage, **proofs_of(finished)})


def _verbose_json(transcript: Transcript, finished: Finished) -> bytes:
    segments = [{"id": number, **msgspec.structs.asdict(one)} for number, one in enumerate(transcript.segments)]
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": segments,
        "usage": {"type": "duration", "seconds": finished.usage.units / 1000, **cost_of(finished)},
        **proofs_of(finished),
    }
    return msgspec.json.encode(body)


def _text(transcript: Transcript, finished: Finished) -> bytes:
    return f"{transcript.text}\n".encode()


def _srt(transcript: Transcript, finished: Finished) -> bytes:
    cues = [
        f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{_cue(one.text)}\n\n"
        for number, one in enumerate(transcript.segments, 1)
    ]
    return "".join(cues).encode()


def _vtt(transcript: Transcript, finished: Finished) -> bytes:
    cues = [f"{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{_cue(one.text)}\n\n" for one in transcript.segments]
    return ("WEBVTT\n\n" + "".join(cues)).encode()


def _cue(text: str) -> str:
    """A cue ends with an empty line, and an arrow would be a new time."""
    return " ".join(text.split()).replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    whole_ms = math.floor(seconds * 1000 + 0.5)
    minutes, ms = divmod(whole_ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"


Write = Callable[[Transcript, Finished], bytes]

WRITERS: Mapping[ResponseFormat, tuple[str, Write]] = {
    "json": ("application/json", _json),
    "verbose_json": ("application/json", _verbose_json),
    "text": ("text/plain; charset=utf-8", _text),
    "srt": ("application/x-subrip; charset=utf-8", _srt),
    "vtt": ("text/vtt; charset=utf-8", _vtt),
}
"""Each format with its content type."""
