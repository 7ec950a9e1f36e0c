"""Speech to text by Whisper, through mlx-whisper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_whisper.load_models import load_model
from mlx_whisper.tokenizer import LANGUAGES
from mlx_whisper.transcribe import ModelHolder, transcribe

from agent.engine.media import SpeechJob, Transcript, Used
from agent.engine.serial import Cancelled
from agent.engine.sound import SAMPLE_RATE, samples_of
from agent.errors import JobRefused, ModelRejected

_FIGURES = ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
_LENGTH_SLACK = 1.05
_LENGTH_SLACK_MS = 1_000


class _Interruptible:
    """A Whisper model that stops between two windows of 30 seconds when nobody waits any more."""

    def __init__(self, model: Any, is_cancelled: Callable[[], bool]) -> None:
        self._model = model
        self._is_cancelled = is_cancelled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode(self, *arguments: Any) -> Any:
        if self._is_cancelled():
            raise Cancelled
        return self._model.decode(*arguments)


class SpeechModel:
    """A job is two steps: reading the file, and listening."""

    def __init__(self, path: Path, model: Any, *, half_precision: bool) -> None:
        self._path = str(path)
        self._model = model
        self._half_precision = half_precision

    @classmethod
    def load(cls, path: Path) -> SpeechModel:
        """Raises ModelRejected when the folder cannot be loaded."""
        half_precision = mx.default_device() != mx.Device(mx.cpu)  # which a CPU only emulates
        try:
            model = load_model(str(path), mx.float16 if half_precision else mx.float32)
        except Exception as error:
            raise ModelRejected(
                f"{path} cannot be loaded: {type(error).__name__}. Download the model in the format of mlx-whisper."
            ) from error
        return cls(path, model, half_precision=half_precision)

    def warm_up(self) -> None:
        second = np.zeros(SAMPLE_RATE, np.float32)
        self._listen(second, SpeechJob(b"", "wav", language="en", temperature=0), lambda: False)

    def run(self, job: SpeechJob, is_cancelled: Callable[[], bool]) -> Iterator[Transcript | Used | None]:
        if job.language is not None and job.language not in LANGUAGES:
            raise JobRefused("language: this model does not know it")
        if job.prompt is not None and "<|" in job.prompt:
            raise JobRefused("prompt: it must not hold control tokens")
        samples = samples_of(job.sound, job.audio_format)
        length_ms = -(-samples.size * 1000 // SAMPLE_RATE)
        if job.stated_ms is not None and length_ms > job.stated_ms * _LENGTH_SLACK + _LENGTH_SLACK_MS:
            raise JobRefused("file: it is longer than its own header says")
        yield None
        found = self._listen(samples, job, is_cancelled)
        yield Transcript(
            text=found["text"],
            language=LANGUAGES.get(found["language"], found["language"]),
            duration=length_ms / 1000,
            segments=tuple(_in_bounds(one, length_ms / 1000) for one in found["segments"]),
        )
        yield Used(units=length_ms)

    def _listen(self, samples: Any, job: SpeechJob, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        # mlx-whisper takes its model from there; other engines of this thread leave theirs.
        ModelHolder.model, ModelHolder.model_path = _Interruptible(self._model, is_cancelled), self._path
        options: dict[str, Any] = {} if job.temperature is None else {"temperature": job.temperature}
        try:
            found: dict[str, Any] = transcribe(
                samples,
                path_or_hf_repo=self._path,
                language=job.language,
                initial_prompt=job.prompt,
                fp16=self._half_precision,
                verbose=None,
                **options,
            )
        finally:
            ModelHolder.model = ModelHolder.model_path = None
        return found


def _in_bounds(segment: dict[str, Any], duration: float) -> dict[str, Any]:
    """A model may place a segment backwards or behind the end, and a figure of it may be none."""
    start = min(max(segment["start"], 0.0), duration)
    figures = {name: segment[name] if isfinite(segment[name]) else 0.0 for name in _FIGURES}
    return {
        "seek": segment["seek"],
        "start": start,
        "end": min(max(segment["end"], start), duration),
        "text": segment["text"],
        "tokens": segment["tokens"],
        **figures,
    }
