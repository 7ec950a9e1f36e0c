"""Model folders: what is accepted, what is said about the rest, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ModelRejected
from agent.models import fingerprint, inspect


def make(folder: Path, config: dict[str, Any] | None = None, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def rejection(path: Path) -> str:
    with pytest.raises(ModelRejected) as caught:
        inspect(path)
    assert caught.value.exit_code == 5
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_complete_folder_gives_its_facts(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "max_position_embeddings": 4096, "quantization": {"group_size": 64, "bits": 4}}
    model = inspect(make(tmp_path / "demo", config))
    assert (model.id, model.model_type, model.quantization) == ("demo", "qwen2", "4bit")
    assert (model.size_bytes, model.context_length) == (7, 4096)


def test_size_counts_all_weight_files_and_follows_links(tmp_path: Path) -> None:
    folder = make(tmp_path / "demo", None, **{"extra.npz": b"12345", "notes.txt": b"not weights"})
    (tmp_path / "blob").write_bytes(b"123")
    (folder / "linked.bin").symlink_to(tmp_path / "blob")
    assert inspect(folder).size_bytes == 7 + 5 + 3


def test_the_context_of_a_nested_text_model_is_found(tmp_path: Path) -> None:
    config = {"model_type": "x", "text_config": {"max_position_embeddings": 131072}}
    assert inspect(make(tmp_path / "demo", config)).context_length == 131072


def test_an_unstated_context_is_taken_to_be_modest(tmp_path: Path) -> None:
    assert inspect(make(tmp_path / "demo")).context_length == 8192


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("gemma-8bit", {}, "8bit"),
        ("model-Q4-mlx", {}, "4bit"),
        ("model-int8", {}, "8bit"),
        ("model-bf16", {}, "bf16"),
        ("model-fp16", {}, "fp16"),
        ("model", {"torch_dtype": "bfloat16"}, "bf16"),
        ("model", {"dtype": "float32"}, "fp32"),
        ("model-8bit", {"quantization": {"bits": 6}}, "6bit"),
        ("model", {}, "unknown"),
    ],
)
def test_quantization_comes_from_config_then_name_then_type(
    tmp_path: Path, name: str, config: dict[str, Any], expected: str
) -> None:
    assert inspect(make(tmp_path / name, {"model_type": "llama", **config})).quantization == expected


def test_quantization_of_older_conversions_stands_in_its_own_file(tmp_path: Path) -> None:
    assert inspect(make(tmp_path / "model", None, **{"quantize_config.json": b'{"bits": 3}'})).quantization == "3bit"


class TestRejections:
    def test_no_folder(self, tmp_path: Path) -> None:
        assert "is not a folder" in rejection(tmp_path / "absent")

    def test_no_config(self, tmp_path: Path) -> None:
        assert "has no config.json" in rejection(tmp_path)

    def test_broken_config(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "demo")
        (folder / "config.json").write_text("{")
        assert "not a model's configuration" in rejection(folder)

    def test_no_model_type(self, tmp_path: Path) -> None:
        assert "model_type" in rejection(make(tmp_path / "demo", {"vocab_size": 5}))

    def test_code_of_the_models_own(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "demo", {"model_type": "x", "model_file": "model.py"})
        assert "own code" in rejection(folder)

    def test_no_weights(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "demo")
        (folder / "model.safetensors").unlink()
        assert "has no weights" in rejection(folder)

    def test_missing_shards(self, tmp_path: Path) -> None:
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        folder = make(tmp_path / "demo", None, **{"model.safetensors.index.json": json.dumps(index).encode()})
        assert "first model-2.safetensors" in rejection(folder)

    def test_unfinished_download(self, tmp_path: Path) -> None:
        assert "model.safetensors.part" in rejection(make(tmp_path / "demo", None, **{"model.safetensors.part": b""}))

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "demo")
        (folder / "tokenizer.json").unlink()
        assert "tokenizer.json" in rejection(folder)

    def test_a_name_that_signatures_could_not_carry(self, tmp_path: Path) -> None:
        assert "must not hold" in rejection(make(tmp_path / "a&b"))


def test_the_fingerprint_follows_the_published_algorithm(tmp_path: Path) -> None:
    contents = {
        "config.json": b"c",
        "model-00001.safetensors": b"one",
        "model-00002.safetensors": b"two",
        "old.bin": b"b",
        "tokenizer.json": b"t",
        "weights.npz": b"n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_bytes(b"ignored")
    (tmp_path / "model.safetensors.index.json").write_bytes(b"ignored")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "model.safetensors").write_bytes(b"ignored")
    digests = b"".join(hashlib.sha256(contents[name]).digest() for name in sorted(contents))
    assert fingerprint(tmp_path) == hashlib.sha256(digests).hexdigest()
