"""What engines of media take and give.

Fields that hold a consumer's content are left out of every ``repr``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """``dimensions`` cuts the vectors, None leaves them whole."""

    texts: tuple[str, ...] = field(repr=False)
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """The next text's vector: 32-bit floats, little-endian as every Mac is."""

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """``stated_ms`` is how long the sound's header says that it is, None when it does not. Without a language it is
    found out, without a temperature Whisper raises it where it does not succeed."""

    sound: bytes = field(repr=False)
    audio_format: str
    stated_ms: int | None = None
    language: str | None = None
    prompt: str | None = field(default=None, repr=False)
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """``duration`` is seconds; ``segments`` have Whisper's own members."""

    text: str = field(repr=False)
    language: str
    duration: float
    segments: tuple[dict[str, Any], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageJob:
    """``count`` images of ``width`` times ``height`` pixels; without a seed they are drawn anew each time."""

    prompt: str = field(repr=False)
    count: int
    width: int
    height: int
    negative_prompt: str | None = field(default=None, repr=False)
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """The next image, as PNG."""

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Used:
    """The last word of a job that makes media: what it counts for. ``units`` are pixels or milliseconds of sound."""

    prompt_tokens: int = 0
    units: int = 0
