"""A folder with MLX weights, checked before anything is loaded from it.

Source: provider agent, sections 7.2 to 7.5.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.errors import ModelRejected
from domain.kinds import EMBEDDING, IMAGE, TEXT, TRANSCRIPTION, ModelKind

POOLING_CONFIG = Path("1_Pooling") / "config.json"
"""Where sentence-transformers says how a model's states become one vector: only embedding models have it."""

_WEIGHT_SUFFIXES = (".safetensors", ".npz", ".bin")
_FINGERPRINTED_NAMES = frozenset(
    (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "generation_config.json",
        "chat_template.jinja",
        "quantize_config.json",
    )
)
_IMAGE_PARTS = ("transformer", "text_encoder", "vae")
_WHISPER_WEIGHTS = ("weights.safetensors", "weights.npz")
_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "tiktoken.model")
_CONTEXT_MEMBERS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "model_max_length")

_UNKNOWN_CONTEXT_TOKENS = 8192

# Encoders disagree on how they escape these inside the status that a challenge answer signs (attestation, section 6.2).
_FORBIDDEN_IN_IDS = re.compile("[<>&\u2028\u2029\x00-\x1f\x7f]")

_NAME_HINTS = (
    ("4bit", r"4-?bit|q4|int4"),
    ("8bit", r"8-?bit|q8|int8"),
    ("3bit", r"3-?bit|q3"),
    ("bf16", r"bf16"),
    ("fp16", r"fp16|f16"),
)
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class _Quantization(msgspec.Struct):
    bits: int | None = None


class _Config(msgspec.Struct):
    """The members of ``config.json`` that the agent reads itself."""

    model_type: str = ""
    model_file: str | None = None
    quantization: _Quantization | None = None
    torch_dtype: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What can be said of a model without loading it. ``context_length`` is in tokens, prompt and answer together."""

    id: str
    path: Path = field(repr=False)
    size_bytes: int
    model_type: str
    quantization: str
    context_length: int
    kind: ModelKind = TEXT


def inspect(path: Path) -> ModelFolder:
    """Check that ``path`` holds everything that a model of its kind needs, and read its facts.

    Raises:
        ModelRejected: something is missing or not served; the message says what, where, and what to do.
    """
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise ModelRejected(f"{path} is not a folder. Give --model the folder that holds the model's config.json.")
    if (found := _FORBIDDEN_IN_IDS.search(path.name)) is not None:
        raise ModelRejected(f"{path}: a model's name must not hold {found.group()!r}. Rename the folder.")
    if all((path / part).is_dir() for part in _IMAGE_PARTS):
        return _inspect_image_model(path)
    config, members = _read_config(path)
    kind = _kind(path, config)
    _check_complete(path, kind)
    return ModelFolder(
        kind=kind,
        id=path.name,
        path=path,
        size_bytes=sum(file.stat().st_size for file in _weights_in(path)),
        model_type=config.model_type,
        quantization=_quantization(path, config),
        context_length=_context_length(members),
    )


def fingerprint(path: Path) -> str:
    """SHA-256 over the SHA-256 digests of the model's files in path order (provider agent, section 7.4).

    Reads every weight file once, so this takes seconds for each ten gigabytes.
    """
    described = [file for file in path.iterdir() if file.is_file() and file.name in _FINGERPRINTED_NAMES]
    files = {*_weights_in(path), *described}
    combined = hashlib.sha256()
    for file in sorted(files, key=lambda file: str(file).encode()):
        with file.open("rb") as content:
            combined.update(hashlib.file_digest(content, "sha256").digest())
    return combined.hexdigest()


def _read_config(path: Path) -> tuple[_Config, dict[str, object]]:
    file = path / "config.json"
    try:
        raw = file.read_bytes()
    except OSError:
        raise ModelRejected(f"{path} has no config.json, so it is not a model. Download the model again.") from None
    try:
        config = msgspec.json.decode(raw, type=_Config)
        members = msgspec.json.decode(raw, type=dict[str, object])
    except msgspec.DecodeError:
        raise ModelRejected(f"{file} is not a model's configuration. Download the model again.") from None
    if not config.model_type:
        raise ModelRejected(f"{file} names no model_type. Download the model again.")
    if config.model_file:
        raise ModelRejected(f"{file} asks to run the model's own code, which is never done. Choose another model.")
    return config, members


def _inspect_image_model(path: Path) -> ModelFolder:
    empty = [part for part in _IMAGE_PARTS if not any((path / part).glob("*.safetensors"))]
    if empty:
        raise ModelRejected(f"{path / empty[0]} has no weights (*.safetensors). Download the model again.")
    return ModelFolder(
        id=path.name,
        path=path,
        size_bytes=sum(file.stat().st_size for file in _weights_in(path)),
        model_type="flux2",
        quantization=_quantization(path, _Config()),
        context_length=0,
        kind=IMAGE,
    )


def _weights_in(path: Path) -> list[Path]:
    """The weight files of a folder; those of an image model lie a folder deeper."""
    folders = (path, *(path / part for part in _IMAGE_PARTS))
    return [
        file
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.is_file() and file.suffix in _WEIGHT_SUFFIXES
    ]


def _kind(path: Path, config: _Config) -> ModelKind:
    if config.model_type == "whisper":
        return TRANSCRIPTION
    return EMBEDDING if (path / POOLING_CONFIG).is_file() else TEXT


def _check_complete(path: Path, kind: ModelKind) -> None:
    unfinished = sorted(file.name for file in path.glob("*.part"))
    if unfinished:
        raise ModelRejected(f"{path}: the download of {unfinished[0]} is not finished. Finish it first.")
    if kind == TRANSCRIPTION:  # whose tokenizer comes with mlx-whisper
        if not any((path / name).is_file() for name in _WHISPER_WEIGHTS):
            raise ModelRejected(
                f"{path} has no {' or '.join(_WHISPER_WEIGHTS)}. Download the model in the format of mlx-whisper."
            )
        return
    if not any(path.glob("model*.safetensors")):
        raise ModelRejected(f"{path} has no weights (model*.safetensors). Download the model again, in MLX format.")
    missing = sorted(name for name in _indexed_shards(path) if not (path / name).is_file())
    if missing:
        raise ModelRejected(f"{path}: {len(missing)} weight files are missing, first {missing[0]}. Download them.")
    if not any((path / name).is_file() for name in _TOKENIZER_NAMES):
        raise ModelRejected(f"{path} has no tokenizer.json. Download the model again.")


def _indexed_shards(path: Path) -> set[str]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        members = msgspec.json.decode(index.read_bytes(), type=dict[str, object])
        return set(msgspec.convert(members.get("weight_map", {}), dict[str, str]).values())
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise ModelRejected(f"{index} cannot be read. Download the model again.") from None


def _quantization(path: Path, config: _Config) -> str:
    if config.quantization is not None and config.quantization.bits:
        return f"{config.quantization.bits}bit"
    for label, hint in _NAME_HINTS:
        if re.search(rf"(?:^|[^a-z0-9])(?:{hint})(?:[^a-z0-9]|$)", path.name.lower()):
            return label
    try:
        legacy = msgspec.json.decode((path / "quantize_config.json").read_bytes(), type=_Quantization)
    except (OSError, msgspec.DecodeError):
        legacy = _Quantization()
    if legacy.bits:
        return f"{legacy.bits}bit"
    return _DTYPES.get(config.dtype or config.torch_dtype or "", "unknown")


def _context_length(members: dict[str, object]) -> int:
    # Multimodal models keep the language model's figures one level down.
    nested = members.get("text_config")
    for source in (members, nested if isinstance(nested, dict) else {}):
        for name in _CONTEXT_MEMBERS:
            value = source.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return _UNKNOWN_CONTEXT_TOKENS
