"""Embeddings by an MLX text model: what its last layer says of a text, pooled to one vector of length 1.

The folder says how.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm import load as load_from_folder

from agent.engine.media import EmbeddingJob, Used, Vector
from agent.errors import JobRefused, ModelRejected
from agent.models import POOLING_CONFIG

_STEP_TOKENS_MAX = 4_096
"""What one step reads at most, filling included, unless a single text is longer."""


class _Pooling(msgspec.Struct):
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class EmbeddingModel:
    """All its work but ``load`` is done in steps of some thousand tokens."""

    def __init__(self, model: Any, tokenizer: Any, pool: Callable[[mx.array, int], mx.array], context: int) -> None:
        self._layers = model.model
        self._tokenizer = tokenizer
        self._pool = pool
        self._context_length = context

    @classmethod
    def load(cls, path: Path, context_length: int) -> EmbeddingModel:
        """Raises ModelRejected when the folder cannot be loaded or its pooling is not one of ours."""
        try:
            model, tokenizer = load_from_folder(str(path), tokenizer_config={"trust_remote_code": False})[:2]
            pooling = msgspec.json.decode((path / POOLING_CONFIG).read_bytes(), type=_Pooling)
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise ModelRejected(
                f"{path} cannot be loaded: {reason[0] if reason else type(error).__name__}. Download the model again "
                "in MLX format, or update mlx-lm if its architecture is new."
            ) from error
        if not hasattr(model, "model"):
            raise ModelRejected(f"{path}: mlx-lm keeps this architecture's layers where embeddings are not found.")
        return cls(model, tokenizer, _pool_of(pooling, path), context_length)

    def warm_up(self) -> None:
        for _ in self.run(EmbeddingJob(("warm", "up")), lambda: False):
            pass

    def run(self, job: EmbeddingJob, is_cancelled: Callable[[], bool]) -> Iterator[Vector | Used | None]:
        tokens = []
        for number, text in enumerate(job.texts):
            tokens.append(self._tokens(number, text))
            yield None
        for batch in _batches(tokens):
            for vector in self._embed(batch, job.dimensions):
                yield Vector(vector)
        yield Used(prompt_tokens=sum(map(len, tokens)))

    def _tokens(self, number: int, text: str) -> list[int]:
        tokens = list(self._tokenizer.encode(text))
        if not 1 <= len(tokens) <= self._context_length:
            raise JobRefused(
                f"input[{number}]: it has {len(tokens)} tokens, and the model reads 1 to {self._context_length}"
            )
        return tokens

    def _embed(self, batch: Sequence[list[int]], dimensions: int | None) -> list[bytes]:
        longest = max(map(len, batch))
        # Filling stands at the right end, where no earlier token looks.
        filled = mx.array([tokens + [0] * (longest - len(tokens)) for tokens in batch])
        hidden = self._layers(filled)
        pooled = mx.stack([self._pool(rows, len(tokens)) for rows, tokens in zip(hidden, batch, strict=True)])
        if dimensions is not None and dimensions > pooled.shape[-1]:
            raise JobRefused(f"dimensions: this model has {pooled.shape[-1]}")
        vectors = pooled[:, :dimensions].astype(mx.float32)
        norms = mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        rows: Any = (vectors / norms).tolist()
        return [array("f", row).tobytes() for row in rows]


def _pool_of(pooling: _Pooling, path: Path) -> Callable[[mx.array, int], mx.array]:
    """From the states of one row, of which the first ones are its tokens', to one vector."""
    if pooling.pooling_mode_lasttoken:
        return lambda rows, length: rows[length - 1]
    if pooling.pooling_mode_mean_tokens:
        return lambda rows, length: rows[:length].astype(mx.float32).mean(axis=0)
    if pooling.pooling_mode_cls_token:
        return lambda rows, length: rows[0]
    raise ModelRejected(f"{path / POOLING_CONFIG} asks for a pooling that is not served: only cls, mean and lasttoken.")


def _batches(tokens: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for row in tokens:
        if batch and (len(batch) + 1) * max(len(row), *map(len, batch)) > _STEP_TOKENS_MAX:
            yield batch
            batch = []
        batch.append(row)
    yield batch
