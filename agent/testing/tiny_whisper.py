"""Builds a Whisper model of some megabytes with random weights, and sounds to listen to.

Its transcripts mean nothing, but its vocabulary and its way through the windows are those of the real ones.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_whisper.whisper import ModelDimensions, Whisper

_DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=16,
    n_audio_head=2,
    n_audio_layer=1,
    n_vocab=51_865,
    n_text_ctx=32,
    n_text_state=16,
    n_text_head=2,
    n_text_layer=1,
)


def build_random_whisper(folder: Path, *, seed: int = 7) -> Path:
    """A model whose weights are drawn with ``seed``; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = mx.random.key(seed)
    weights = {}
    parameters: Any = tree_flatten(Whisper(_DIMENSIONS, mx.float32).parameters())
    for name, value in parameters:
        key, draw = mx.random.split(key)
        weights[name] = mx.random.normal(value.shape, key=draw) * 0.5
    mx.save_safetensors(str(folder / "weights.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper", **asdict(_DIMENSIONS)}))
    return folder


def sine_wav(seconds: float, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """A tone as a plain 16-bit WAV file."""
    frames = round(seconds * rate)
    samples = [round(8_000 * math.sin(2 * math.pi * 440 * number / rate)) for number in range(frames)]
    data = struct.pack(f"<{frames * channels}h", *(sample for sample in samples for _ in range(channels)))
    layout = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    return b"RIFF%bWAVEfmt %b%bdata%b%b" % (
        struct.pack("<I", 36 + len(data)),
        struct.pack("<I", 16),
        layout,
        struct.pack("<I", len(data)),
        data,
    )
