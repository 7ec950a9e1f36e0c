"""How long a request that finds no free slot will wait."""

from __future__ import annotations

import math

RETRY_SECONDS_MIN = 2
RETRY_SECONDS_MAX = 30
GUESSED_SECONDS = 3.0
"""How long a place in the queue takes while nobody knows better."""


def expected_wait_seconds(position: int, slots: int, slot_seconds: float | None) -> float | None:
    """The wait of the request at a position of the queue, the first one being 1.

    ``slots`` come free at a rate of one in ``slot_seconds / slots``. None when nobody knows how long requests take, or
    when there is no slot.
    """
    if slot_seconds is None or slots <= 0:
        return None
    return position * slot_seconds / slots


def retry_after_seconds(position: int, wait_seconds: float | None) -> int:
    """When to ask again after a refusal: once a part of the queue is gone."""
    if wait_seconds is None:
        wait_seconds = GUESSED_SECONDS * position
    return min(RETRY_SECONDS_MAX, max(RETRY_SECONDS_MIN, math.ceil(wait_seconds)))
