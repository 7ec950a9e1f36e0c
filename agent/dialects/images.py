"""Reads the body of an image request and writes the images (``POST /v1/images/generations``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from agent.dialects.task import Task, read
from agent.engine.media import Image, ImageJob
from domain.kinds import IMAGE

PART_BYTES = 512 * 1024

_Side = Annotated[int, msgspec.Meta(ge=1, le=2_048)]


class _Body(msgspec.Struct):
    model: str
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]
    n: Annotated[int, msgspec.Meta(ge=1, le=4)]
    width: _Side
    height: _Side
    negative_prompt: str | None = None
    steps: Annotated[int, msgspec.Meta(ge=1, le=50)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None


_decoder = msgspec.json.Decoder(_Body)


def parse(body: bytes) -> Task:
    """Raises JobRefused."""
    asked = read(_decoder, body)
    job = ImageJob(
        prompt=asked.prompt,
        count=asked.n,
        width=asked.width,
        height=asked.height,
        negative_prompt=asked.negative_prompt,
        steps=asked.steps,
        seed=asked.seed,
    )
    return Task(asked.model, IMAGE, job, _Writer())


class _Writer:
    """Of each image first its size in bytes, and then its bytes in parts."""

    def __init__(self) -> None:
        self._written = 0

    def __call__(self, image: Image) -> Iterable[bytes]:
        yield b'data: {"index":%d,"bytes":%d}' % (self._written, len(image.content))
        self._written += 1
        for at in range(0, len(image.content), PART_BYTES):
            yield image.content[at : at + PART_BYTES]
