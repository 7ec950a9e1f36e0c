"""How long a request that finds no free slot will wait."""

from __future__ import annotations

import math

RETRY_SECONDS_MIN = 2
RETRY_SECONDS_MAX = 30


def expected_wait_seconds(position: int, slots: int, slot_seconds: float | None) -> float | None:
    """The wait of the request at a position of the queue, the first one being 1.

    ``slots`` come free at a rate of one in ``slot_seconds / slots``. None when nobody knows how long requests take, or
    when there is no slot.
    """
    if slot_seconds is None or slots <= 0:
        return None
    return position * slot_seconds / slots


def retry_after_seconds(wait_seconds: float) -> int:
    """When to ask again after a refusal: once a part of the queue is gone."""
    return min(RETRY_SECONDS_MAX, max(RETRY_SECONDS_MIN, math.ceil(wait_seconds)))
