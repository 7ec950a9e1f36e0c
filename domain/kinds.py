"""The kinds of models: what one makes decides which endpoint asks it, and what is metered."""

from __future__ import annotations

from typing import Final, Literal

ModelKind = Literal["text", "embedding", "image", "transcription"]

TEXT: Final = "text"
EMBEDDING: Final = "embedding"
IMAGE: Final = "image"
TRANSCRIPTION: Final = "transcription"

KINDS: tuple[ModelKind, ...] = (TEXT, EMBEDDING, IMAGE, TRANSCRIPTION)
