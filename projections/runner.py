"""Follows the event log and keeps the lagging read models.

Each projection has one row of tracking. A batch of many events is applied in one transaction together with that row,
which also fences: whoever holds its lock is the one runner, wherever it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import psycopg

from domain import events
from domain.eventsourced import DomainEvent

log = logging.getLogger(__name__)

PAGE_EVENTS = 5_000
IDLE_SECONDS = 0.5
"""How long to wait for a notification before looking at the log anyway."""

ENSURE_TRACKING = "INSERT INTO projection_tracking (name, position) VALUES (%s, 0) ON CONFLICT (name) DO NOTHING"
LOCK_TRACKING = "SELECT position FROM projection_tracking WHERE name = %s FOR UPDATE SKIP LOCKED"
ADVANCE_TRACKING = "UPDATE projection_tracking SET position = %s WHERE name = %s"
PAGE = """
SELECT position, originator_id, topic, recorded_at, state FROM events
WHERE position > %s AND position <= %s AND topic = ANY(%s) ORDER BY position
"""
HEAD = "SELECT position FROM ledger_head"
LISTEN = "LISTEN ledger"

GATHER_SECONDS = 0.05
"""How long to let events gather between two passes, so that a busy log is read in pages and not one by one."""

Connection = psycopg.Connection[tuple[Any, ...]]


class Recorded(NamedTuple):
    """An event where it stands in the log."""

    position: int
    originator_id: UUID
    recorded_at: datetime
    event: DomainEvent


class Projection(Protocol):
    """A read model: its name, the topics that it reads, and how a batch changes its tables."""

    name: str
    topics: Sequence[str]

    def apply(self, connection: Connection, batch: Sequence[Recorded]) -> None: ...


class ProjectionRunner:
    """Runs projections in one thread until stopped; a lost connection is taken up again."""

    def __init__(self, dsn: str, projections: Sequence[Projection]) -> None:
        self._dsn = dsn
        self._projections = projections
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="projections", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def catch_up(self) -> None:
        """Apply everything that is in the log now."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            self._prepare(connection)
            while self._pass(connection):
                continue

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as connection:
                    self._prepare(connection)
                    connection.execute(LISTEN)
                    self._follow(connection)
            except psycopg.OperationalError as error:
                log.warning("the projections lost their connection: %s", type(error).__name__)
                self._stopping.wait(1.0)

    def _prepare(self, connection: Connection) -> None:
        for projection in self._projections:
            connection.execute(ENSURE_TRACKING, (projection.name,))

    def _follow(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            if self._pass(connection):
                self._stopping.wait(GATHER_SECONDS)
                continue
            for _ in connection.notifies(timeout=IDLE_SECONDS, stop_after=1):
                pass

    def _pass(self, connection: Connection) -> bool:
        """Apply one page to every projection; whether anything moved."""
        row = connection.execute(HEAD).fetchone()
        assert row is not None
        return any([self._try_to_advance(connection, projection, row[0]) for projection in self._projections])

    def _try_to_advance(self, connection: Connection, projection: Projection, head: int) -> bool:
        """One projection that cannot go on stops neither the others nor its own next try."""
        try:
            return self._advance(connection, projection, head)
        except psycopg.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001  # an event of a newer build, a defect of one projection
            log.error("%s cannot go on: %s", projection.name, type(error).__name__)
            return False

    def _advance(self, connection: Connection, projection: Projection, head: int) -> bool:
        with connection.transaction():
            row = connection.execute(LOCK_TRACKING, (projection.name,)).fetchone()
            if row is None or row[0] >= head:
                return False
            position = row[0]
            upto = min(head, position + PAGE_EVENTS)
            page = connection.execute(PAGE, (position, upto, list(projection.topics)), binary=True).fetchall()
            batch = [
                Recorded(at, originator, recorded_at, events.decode(topic, state))
                for at, originator, topic, recorded_at, state in page
            ]
            if batch:
                projection.apply(connection, batch)
            connection.execute(ADVANCE_TRACKING, (upto, projection.name))
        return True
