"""Which engine serves a folder, and on which thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.engine.embeddings import EmbeddingModel
from agent.engine.engine import Engine
from agent.engine.serial import Model, SerialEngine
from agent.engine.text import TextEngine
from agent.engine.thread import MlxThread
from agent.errors import ModelRejected
from agent.models import ModelFolder
from domain.kinds import EMBEDDING, TEXT, ModelKind

SHORT_STEPS = frozenset({TEXT, EMBEDDING})
"""Kinds whose steps are short, so that they can share a thread; a window of sound takes seconds."""


class Threads:
    """The threads that make MLX calls: one for what takes turns by short steps, one for what cannot."""

    def __init__(self) -> None:
        self.short_steps = MlxThread()
        self._long_steps: MlxThread | None = None

    def of(self, kind: ModelKind) -> MlxThread:
        if kind in SHORT_STEPS:
            return self.short_steps
        if self._long_steps is None:
            self._long_steps = MlxThread()
        return self._long_steps

    def close(self) -> bool:
        """Stop after the current steps; False when one outlasts the time for that."""
        threads = [thread for thread in (self.short_steps, self._long_steps) if thread is not None]
        return all([thread.close() for thread in threads])


def engine_for(folder: ModelFolder, threads: Threads, max_concurrent: int) -> Engine[Any, Any]:
    """Nothing is loaded yet. ``max_concurrent`` is for models that batch requests."""
    thread, path, context_length = threads.of(folder.kind), folder.path, folder.context_length
    match folder.kind:
        case "embedding":
            return SerialEngine(folder.id, thread, lambda: EmbeddingModel.load(path, context_length))
        case "image":
            return SerialEngine(folder.id, thread, lambda: _image_model(path))
        case "transcription":
            return SerialEngine(folder.id, thread, lambda: _speech_model(path))
        case _:
            return TextEngine(path, thread, context_length=context_length, max_concurrent=max_concurrent)


def _image_model(path: Path) -> Model[Any, Any]:
    try:
        from agent.engine.images import ImageModel
    except ModuleNotFoundError as error:
        raise _not_installed(path, error) from None
    return ImageModel.load(path)


def _speech_model(path: Path) -> Model[Any, Any]:
    try:
        from agent.engine.speech import SpeechModel
    except ModuleNotFoundError as error:
        raise _not_installed(path, error) from None
    return SpeechModel.load(path)


def _not_installed(path: Path, error: ModuleNotFoundError) -> ModelRejected:
    return ModelRejected(
        f"{path} needs {error.name}, which is not installed. Install darkbloom[media], or see how to serve media."
    )
