"""The embeddings that a machine made, from its chunks to OpenAI's list of vectors.

A machine sends one chunk a text, in their order, each with the vector as base64 of little-endian 32-bit floats.
"""

from __future__ import annotations

import math
import sys
from array import array

import msgspec

from api.consumer.answers import Made, decoded
from api.consumer.embeddings_request import DIMENSIONS_MAX, EmbeddingsRequest
from api.consumer.inference import Finished
from api.consumer.rendering import cost_of, proofs_of

VECTORS_BYTES_MAX = 64 * 1024 * 1024
"""Of one answer."""


class Embeddings(Made, frozen=True, kw_only=True):
    """``vectors`` are 32-bit floats in little-endian order."""

    vectors: list[bytes]


class _Part(msgspec.Struct):
    index: int
    embedding: bytes


_part = msgspec.json.Decoder(_Part)


class EmbeddingsReader:
    """Reads one machine's answer."""

    def __init__(self, request: EmbeddingsRequest) -> None:
        self._expected = len(request.texts)
        self._vector_bytes = (request.dimensions or 0) * 4
        self._vectors: list[bytes] = []

    def __call__(self, text: bytes) -> Embeddings | None:
        part = decoded(_part, text)
        self._vector_bytes = self._vector_bytes or len(part.embedding)
        if part.index != len(self._vectors) or part.index >= self._expected:
            raise ValueError("not the next vector")
        if not _is_vector(part.embedding) or len(part.embedding) != self._vector_bytes:
            raise ValueError("not a vector of the length of the others")
        if self._vector_bytes * self._expected > VECTORS_BYTES_MAX:
            raise ValueError("more than may be kept")
        self._vectors.append(part.embedding)
        return Embeddings(vectors=self._vectors) if len(self._vectors) == self._expected else None


def write_embeddings(request: EmbeddingsRequest, answer: Embeddings, finished: Finished) -> bytes:
    tokens = finished.usage.prompt_tokens
    listed = [
        {"object": "embedding", "index": index, "embedding": vector if request.as_base64 else _floats(vector)}
        for index, vector in enumerate(answer.vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, **cost_of(finished)}
    return msgspec.json.encode(
        {"object": "list", "data": listed, "model": request.model, "usage": usage, **proofs_of(finished)}
    )


def _is_vector(content: bytes) -> bool:
    return (
        4 <= len(content) <= 4 * DIMENSIONS_MAX and len(content) % 4 == 0 and all(map(math.isfinite, _floats(content)))
    )


def _floats(content: bytes) -> list[float]:
    floats = array("f", content)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()
