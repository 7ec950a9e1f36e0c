"""Python's cycle collector, set for processes that live for weeks and hold much that never dies."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 50_000
"""The collector looks after so many new objects instead of 700. A batch of the ledger makes thousands and keeps most of
them only until its commit; with the default, looking through them takes a quarter of the writer's time."""


def settle_collector() -> None:
    """Call it once everything is imported: what is there now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
