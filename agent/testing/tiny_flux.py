"""Builds a FLUX.2 Klein of some megabytes with random weights.

mflux knows one size of decoder, which takes minutes on a CPU. ``with_small_decoder`` makes it know a small one instead.
Run as a program, this is the agent with that decoder: the arguments are those of ``darkbloom``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
from mflux.utils.version_util import VersionUtil
from mlx.utils import tree_flatten

from agent.testing.tiny_model import build_random_model

_HIDDEN = 32
_TEXT_ENCODER = {
    "vocab_size": 512,
    "hidden_size": _HIDDEN,
    "num_hidden_layers": 27,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "head_dim": 16,
}
_TRANSFORMER = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 1,
    "joint_attention_dim": 3 * _HIDDEN,
}


def with_small_decoder() -> None:
    """Make this process's mflux build decoders with 32 channels."""
    Flux2VAE.__init__.__defaults__ = ((32, 32, 32, 32),)


def build_random_flux(folder: Path, *, seed: int = 7) -> Path:
    """A model with a small decoder, its weights drawn with ``seed``; returns ``folder``."""
    parts: dict[str, Any] = {
        "transformer": Flux2Transformer(**_TRANSFORMER),
        "text_encoder": Qwen3TextEncoder(**_TEXT_ENCODER),
        "vae": Flux2VAE((32, 32, 32, 32)),
    }
    said = {"mflux_version": VersionUtil.get_mflux_version(), "quantization_level": "None"}
    key = mx.random.key(seed)
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        weights = {}
        parameters: Any = tree_flatten(part.parameters())
        for path, value in parameters:
            key, draw = mx.random.split(key)
            weights[path] = (mx.random.normal(value.shape, key=draw) * 0.02).astype(mx.bfloat16)
        if name == "vae":
            weights["bn.running_var"] = mx.ones_like(weights["bn.running_var"])
        mx.save_safetensors(str(folder / name / "0.safetensors"), weights, metadata=said)
    (folder / "transformer" / "config.json").write_text(json.dumps(_TRANSFORMER))
    (folder / "text_encoder" / "config.json").write_text(json.dumps(_TEXT_ENCODER))
    tokenizer = build_random_model(folder / "tokenizer")
    for needless in ("model.safetensors", "config.json"):
        (tokenizer / needless).unlink()
    return folder


if __name__ == "__main__":
    from agent.cli import main

    with_small_decoder()
    main()
