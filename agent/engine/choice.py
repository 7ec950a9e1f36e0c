"""Which engine serves a folder."""

from __future__ import annotations

from typing import Any

from agent.engine.engine import Engine
from agent.engine.serial import SerialEngine
from agent.engine.text import TextEngine
from agent.engine.thread import MlxThread
from agent.models import ModelFolder
from domain.kinds import EMBEDDING


def engine_for(folder: ModelFolder, thread: MlxThread, max_concurrent: int) -> Engine[Any, Any]:
    """Nothing is loaded yet. ``max_concurrent`` is for models that batch requests."""
    if folder.kind == EMBEDDING:
        from agent.engine.embeddings import EmbeddingModel

        return SerialEngine(folder.id, thread, lambda: EmbeddingModel.load(folder.path, folder.context_length))
    return TextEngine(folder.path, thread, context_length=folder.context_length, max_concurrent=max_concurrent)
