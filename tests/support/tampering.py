"""Changing what must not be changed, as somebody with a superuser's rights could."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from tests.support.ledger_waiting import Connection


@contextmanager
def past_the_guard(look: Connection) -> Generator[None, None, None]:
    """In here no trigger keeps the log append-only."""
    look.execute("SET session_replication_role = replica")
    try:
        yield
    finally:
        look.execute("RESET session_replication_role")
