"""What all jobs have in common that are no chats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from agent.errors import JobRefused
from domain.kinds import ModelKind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task:
    """``job`` is what an engine of this kind takes; ``render`` turns what it makes into the texts of chunks."""

    model: str
    kind: ModelKind
    job: Any = field(repr=False)
    render: Callable[[Any], Iterable[bytes]]


def read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises JobRefused, whose text names the member at fault and holds none of its value."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _, at, path = str(error).partition(" - at ")
        member = path.strip("`").removeprefix("$.") if at else "the request body"
        raise JobRefused(f"{member}: not a valid value") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise JobRefused("the request body is not a JSON object") from None
