"""Builds an embedding model of some hundred kilobytes with random weights."""

from __future__ import annotations

import json
from pathlib import Path

from agent.models import POOLING_CONFIG
from agent.testing.tiny_model import build_random_model

DIMENSIONS = 64


def build_random_embedder(folder: Path, *, pooling: str = "lasttoken", context_length: int = 512) -> Path:
    """``pooling`` is ``cls_token``, ``mean_tokens`` or ``lasttoken``. Returns ``folder``."""
    build_random_model(folder, context_length=context_length)
    config = folder / POOLING_CONFIG
    config.parent.mkdir()
    config.write_text(json.dumps({"word_embedding_dimension": DIMENSIONS, f"pooling_mode_{pooling}": True}))
    return folder
