"""Batches: requests from a file that run while machines are idle, at half price.

A batch and its lines are work to do and content at rest, so they are rows and no events: what became of a line's money
is an inference request like any other. A line may be tried several times; each try is a request of its own, whose id
follows from the batch, the line and the try, so that whoever comes after a crash finds what the try became.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID, uuid5

import msgspec

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")

PURPOSES = ("batch", "batch_output")
"""What was uploaded for a batch, and what came out of one."""

LINES_MAX = 10_000
FILE_BYTES_MAX = 32 * 1024 * 1024
FILES_MAX = 200
"""Files of one key, those that batches made included."""

BATCHES_MAX = 20
"""Batches of one key that are not finished."""

TRIES_MAX = 3
"""How often a line is tried when machines fail. Waiting for an idle machine does not count."""

WINDOW_SECONDS = 24 * 3600.0
FILE_SECONDS = 30 * 24 * 3600.0

Status = Literal["failed", "in_progress", "cancelling", "completed", "expired", "cancelled"]
OPEN: tuple[Status, ...] = ("in_progress", "cancelling")


class BatchLost(Exception):
    """Another gateway works on the batch, or it has ended."""


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line of a batch's file; ``line`` is from 1, None when it is about the whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class StoredFile(NamedTuple):
    """A file of a key. ``purpose`` is one of PURPOSES."""

    file_id: str
    purpose: str
    name: str
    size_bytes: int
    created_at: datetime
    expires_at: datetime


class Batch(NamedTuple):
    batch_id: UUID
    account_id: str
    key_id: str
    endpoint: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    status: Status
    errors: tuple[LineError, ...]
    created_at: datetime
    expires_at: datetime
    cancelling_at: datetime | None
    finished_at: datetime | None
    total: int
    completed: int
    failed: int
    metadata: Mapping[str, str]


class Line(NamedTuple):
    """``number`` is from 1, ``text`` the JSON of the line, ``draft`` what was answered by the last try, if it was."""

    number: int
    tries: int
    text: bytes
    draft: bytes | None = None


def request_id_of(batch_id: UUID, line: int, attempt: int) -> UUID:
    """The id of one try of a line: the same try always has the same one."""
    return uuid5(batch_id, f"{line}/{attempt}")
