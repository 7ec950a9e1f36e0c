"""Reads the body of an embeddings request (``POST /v1/embeddings`` in OpenAI's form) and writes the vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Annotated

import msgspec

from agent.dialects.task import Task, read
from agent.engine.media import EmbeddingJob, Vector
from domain.kinds import EMBEDDING

INPUTS_MAX = 2_048

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Body(msgspec.Struct):
    model: str
    input: Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=INPUTS_MAX)]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None


_decoder = msgspec.json.Decoder(_Body)


def parse(body: bytes) -> Task:
    """Raises JobRefused."""
    asked = read(_decoder, body)
    return Task(asked.model, EMBEDDING, EmbeddingJob(tuple(asked.input), asked.dimensions), _Writer())


class _Writer:
    """One chunk a vector, in the order of the texts."""

    def __init__(self) -> None:
        self._written = 0

    def __call__(self, vector: Vector) -> Iterable[bytes]:
        yield b'data: {"index":%d,"embedding":"%b"}' % (self._written, base64.b64encode(vector.content))
        self._written += 1
