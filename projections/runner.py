"""Follows the event log and keeps the lagging read models.

Each projection has one row of tracking. A page of many events is applied in one transaction together with that row,
which also fences: whoever holds its lock is the one runner, wherever it runs. Nothing else ties a transaction to its
session, so a pooler may stand between; a notification that never comes only means to look a moment later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

import psycopg

from projections.page import Connection, EventNotReadable, read_page
from projections.projection import Projection, topics_of

log = logging.getLogger(__name__)

PAGE_EVENTS = 5_000
IDLE_SECONDS = 0.25
"""How long to wait for a notification before looking at the log anyway."""

GATHER_SECONDS = 0.1
"""How long to let events gather between two passes, so that a busy log is read in pages and not one by one."""

PAUSE_SECONDS_MIN = 1.0
PAUSE_SECONDS_MAX = 60.0
"""How long a projection that could not go on is left alone, from its first failure to its later ones."""

ENSURE_TRACKING = """
INSERT INTO projection_tracking (name, position) SELECT name, 0 FROM unnest(%s::text[]) AS name
ON CONFLICT (name) DO NOTHING
"""

BEHIND = """
SELECT t.name, t.position, h.position FROM projection_tracking t JOIN ledger_head h ON t.position < h.position
WHERE t.name = ANY(%s)
"""
"""Which of the projections are behind, where they stand, and the head of the log."""

LOCK_TRACKING = """
SELECT name, set_config('idle_in_transaction_session_timeout', '60s', true) FROM projection_tracking
WHERE name = ANY(%s) AND position = %s ORDER BY name FOR UPDATE SKIP LOCKED
"""
"""Take those projections that still stand where they were seen and that nobody else is applying. A runner whose machine
vanished keeps them for a minute, not for ever."""

ADVANCE_TRACKING = """
UPDATE projection_tracking SET position = %s, failure = NULL, failed_at = NULL WHERE name = ANY(%s)
"""
NOTE_FAILURE = "UPDATE projection_tracking SET failure = %s, failed_at = clock_timestamp() WHERE name = %s"
LISTEN = "LISTEN ledger"


class ProjectionRunner:
    """Runs projections in one thread until stopped; a lost connection is taken up again."""

    def __init__(self, dsn: str, projections: Sequence[Projection]) -> None:
        self._dsn = dsn
        self._projections = {projection.name: projection for projection in projections}
        self._pauses = _Pauses()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="projections", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def catch_up(self) -> None:
        """Apply everything that is in the log now."""
        with self._connect() as connection:
            connection.execute(ENSURE_TRACKING, (list(self._projections),))
            while self._pass(connection):
                continue

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(ENSURE_TRACKING, (list(self._projections),))
                    _listen(connection)
                    self._follow(connection)
            except psycopg.Error as error:
                log.warning("the projections lost their connection: %s", type(error).__name__)
                self._stopping.wait(1.0)

    def _connect(self) -> Connection:
        # Prepared statements would stay behind in a session of a pooler's that the next transaction does not get.
        return psycopg.connect(
            self._dsn,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=10,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )

    def _follow(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            if self._pass(connection):
                self._stopping.wait(GATHER_SECONDS)
                continue
            for _ in connection.notifies(timeout=IDLE_SECONDS, stop_after=1):
                pass

    def _pass(self, connection: Connection) -> bool:
        """Apply one page to each projection that is behind; whether anything moved.

        Those that stand at the same position share the page. The ones furthest ahead come first, so that a new one that
        reads the whole log does not hold them up.
        """
        names = [name for name in self._projections if self._pauses.is_over(name)]
        standing: defaultdict[int, list[str]] = defaultdict(list)
        behind = connection.execute(BEHIND, (names,)).fetchall()
        for name, position, _ in behind:
            standing[position].append(name)
        head = behind[0][2] if behind else 0
        return any(
            [
                self._advance(connection, standing[position], position, min(head, position + PAGE_EVENTS))
                for position in sorted(standing, reverse=True)
            ]
        )

    def _advance(self, connection: Connection, names: Sequence[str], position: int, upto: int) -> bool:
        """Apply the page after ``position`` to those of the projections that nobody else is applying.

        One that cannot go on undoes the page for all. It stands still from then on, so the others have their page in
        the next pass: that is rare, and a savepoint for each would cost every page twice its round trips.
        """
        applying: Projection | None = None
        try:
            with connection.transaction():
                locked = [name for name, _ in connection.execute(LOCK_TRACKING, (names, position))]
                if not locked:
                    return False
                projections = [self._projections[name] for name in locked]
                page = read_page(connection, position, upto, topics_of(projections))
                for applying in projections:
                    applying.apply(connection, page)
                applying = None
                connection.execute(ADVANCE_TRACKING, (upto, locked))
        except Exception as error:
            if applying is None or connection.closed:
                raise
            self._stand_still(connection, applying.name, error)
            return True
        for name in locked:
            self._pauses.end(name)
        return True

    def _stand_still(self, connection: Connection, name: str, error: Exception) -> None:
        # A database's message may quote a row; only what is known to be harmless is kept.
        reason = str(error) if isinstance(error, EventNotReadable) else type(error).__name__
        seconds = self._pauses.begin(name)
        log.error("%s cannot go on, next try in %.0f s: %s", name, seconds, reason)
        connection.execute(NOTE_FAILURE, (reason, name))


class _Pauses:
    """Until when each projection that failed is left alone; the pause doubles with each failure in a row."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def is_over(self, name: str) -> bool:
        return self._until.get(name, 0.0) <= time.monotonic()

    def begin(self, name: str) -> float:
        seconds = min(2 * self._seconds[name], PAUSE_SECONDS_MAX) if name in self._seconds else PAUSE_SECONDS_MIN
        self._seconds[name] = seconds
        self._until[name] = time.monotonic() + seconds
        return seconds

    def end(self, name: str) -> None:
        self._seconds.pop(name, None)
        self._until.pop(name, None)


def _listen(connection: Connection) -> None:
    try:
        connection.execute(LISTEN)
    except psycopg.Error as error:
        if connection.closed:
            raise
        log.info("no notifications on this connection, looking every %s s: %s", IDLE_SECONDS, type(error).__name__)
