"""Images by FLUX.2 Klein, through mflux."""

from __future__ import annotations

import copy
import io
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mflux.models.common.config import config as _mflux_config
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.flux2.variants.txt2img.flux2_klein import Flux2Klein

from agent.engine.media import Image, ImageJob, Used
from agent.engine.serial import Cancelled
from agent.errors import JobRefused, ModelRejected
from domain.protocol import billed_pixels

DEFAULT_STEPS = 4
_GRID = 16
"""mflux makes sides that are multiples of this."""

# mflux draws its progress on the terminal, which is the agent's log.
_mflux_config.tqdm = partial(_mflux_config.tqdm, disable=True)

_TRANSFORMER = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
_TEXT_ENCODER = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
)


class _StopWhenCancelled:
    """A callback of mflux: it asks before each step whether anybody still waits."""

    def __init__(self) -> None:
        self.is_cancelled: Callable[[], bool] = lambda: False

    def call_in_loop(self, **_: Any) -> None:
        if self.is_cancelled():
            raise Cancelled


class ImageModel:
    """A job is one step an image; a cancelled one ends between two steps of diffusion."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._callback = _StopWhenCancelled()
        model.callbacks.register(self._callback)

    @classmethod
    def load(cls, path: Path) -> ImageModel:
        """Raises ModelRejected when the folder cannot be loaded."""
        config = copy.copy(ModelConfig.flux2_klein_4b())
        try:
            config.transformer_overrides = _members(path / "transformer", _TRANSFORMER) or config.transformer_overrides
            config.text_encoder_overrides = (
                _members(path / "text_encoder", _TEXT_ENCODER) or config.text_encoder_overrides
            )
            model = Flux2Klein(model_path=str(path), model_config=config)
        except Exception as error:
            raise ModelRejected(
                f"{path} cannot be loaded: {type(error).__name__}. Download FLUX.2 Klein again, or save it with mflux."
            ) from error
        return cls(model)

    def warm_up(self) -> None:
        self._make(ImageJob("warm up", 1, 64, 64, steps=1), seed=1)

    def run(self, job: ImageJob, is_cancelled: Callable[[], bool]) -> Iterator[Image | Used | None]:
        if job.negative_prompt is not None:
            raise JobRefused("negative_prompt: this model has none")
        self._callback.is_cancelled = is_cancelled
        first_seed = secrets.randbits(31) if job.seed is None else job.seed
        for number in range(job.count):
            yield Image(self._make(job, seed=(first_seed + number) % 2**31))
        yield Used(units=job.count * billed_pixels(job.width, job.height))

    def _make(self, job: ImageJob, *, seed: int) -> bytes:
        made = self._model.generate_image(
            seed=seed,
            prompt=job.prompt,
            num_inference_steps=job.steps or DEFAULT_STEPS,
            width=-(-job.width // _GRID) * _GRID,
            height=-(-job.height // _GRID) * _GRID,
        )
        file = io.BytesIO()
        # Only the pixels: what mflux would write beside them holds the prompt.
        made.image.crop((0, 0, job.width, job.height)).save(file, "PNG")
        mx.clear_cache()
        return file.getvalue()


def _members(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """A component's sizes, from its own configuration; nothing when it has none."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    found = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    return {name: found[name] for name in names if name in found}
