"""Follows the event log: keeps the Merkle tree true, and has it signed in good time.

Any number of processes may run this on one database. The lock on the tree's tracking row lets one of them work at a
time; those without a notary keep the tree and leave the signing to the others.
"""

from __future__ import annotations

import logging
import threading
import time

import psycopg

from domain.transparency.tiles import TreeDamaged
from projections import checkpoints, transparency
from projections.checkpoints import CheckpointRefused, Notary
from projections.transparency import Connection

log = logging.getLogger(__name__)

ENSURE_TRACKING = """
INSERT INTO projection_tracking (name, position) VALUES ('transparency', 0) ON CONFLICT (name) DO NOTHING
"""
LOCK_TREE = """
SELECT position, set_config('idle_in_transaction_session_timeout', '60s', true) FROM projection_tracking
WHERE name = 'transparency' FOR UPDATE SKIP LOCKED
"""
"""A process whose machine vanished keeps the tree for a minute, not for ever."""

ADVANCE_TREE = "UPDATE projection_tracking SET position = %s WHERE name = 'transparency'"
HEAD = "SELECT position FROM ledger_head"
LISTEN_EVENTS = "LISTEN ledger"
LISTEN_WISHES = "LISTEN checkpoint"

IDLE_SECONDS = 0.25
"""How long to wait for a notification before looking at the log anyway."""

GATHER_SECONDS = 0.1
"""How long to let events gather between two pages, so that a busy log is read in pages and not one by one."""

WISH_SECONDS_MIN = 1.0
"""Wishes for a checkpoint are granted no more often than this."""

DAMAGED_SECONDS = 10.0
"""How long to wait before looking again at a tree that does not fit the log."""


class TransparencyFollower:
    """Runs in one thread until stopped. ``notary`` is None where nothing is signed."""

    def __init__(self, dsn: str, notary: Notary | None, *, checkpoint_seconds: float) -> None:
        self._dsn = dsn
        self._notary = notary
        self._checkpoint_seconds = checkpoint_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transparency", daemon=True)
        self._due_at = 0.0
        self._wish_due_at = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def catch_up(self) -> None:
        """Add everything that is in the log now. Raises TreeDamaged."""
        with self._connect() as connection:
            connection.execute(ENSURE_TRACKING)
            while self._advance(connection):
                continue

    def sign(self) -> None:
        """Sign the tree as it stands now, if that is new. Raises CheckpointRefused or TreeDamaged."""
        assert self._notary is not None, "this follower has nothing to sign with"
        with self._connect() as connection:
            checkpoints.publish(connection, self._notary)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(ENSURE_TRACKING)
                    connection.execute(LISTEN_EVENTS)
                    connection.execute(LISTEN_WISHES)
                    self._follow(connection)
            except psycopg.OperationalError as error:
                log.warning("the transparency log lost its connection: %s", type(error).__name__)
                self._stopping.wait(1.0)
            except TreeDamaged as error:
                log.critical("the tree does not fit the event log any more, and stands still: %s", error)
                self._stopping.wait(DAMAGED_SECONDS)
            except Exception as error:  # noqa: BLE001  # the thread must outlive every failure
                log.error("the transparency log cannot go on: %s", type(error).__name__)
                self._stopping.wait(DAMAGED_SECONDS)

    def _connect(self) -> Connection:
        return psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=10,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )

    def _follow(self, connection: Connection) -> None:
        wished = False
        while not self._stopping.is_set():
            added = self._advance(connection)
            if self._is_due(wished=wished):
                wished = False
                self._sign(connection)
            if 0 < added < transparency.PAGE_LEAVES:
                self._stopping.wait(GATHER_SECONDS)
            for notice in connection.notifies(timeout=0 if added else IDLE_SECONDS, stop_after=1):
                wished = wished or notice.channel == checkpoints.CHANNEL

    def _advance(self, connection: Connection) -> int:
        """Add one page to the tree; how many events that were."""
        head = connection.execute(HEAD).fetchone()
        assert head is not None
        with connection.transaction():
            row = connection.execute(LOCK_TREE).fetchone()
            if row is None or row[0] >= head[0]:
                return 0
            upto = min(head[0], row[0] + transparency.PAGE_LEAVES)
            transparency.apply(connection, row[0], upto)
            connection.execute(ADVANCE_TREE, (upto,))
        return int(upto - row[0])

    def _is_due(self, *, wished: bool) -> bool:
        return self._notary is not None and time.monotonic() >= (self._wish_due_at if wished else self._due_at)

    def _sign(self, connection: Connection) -> None:
        assert self._notary is not None
        pause = self._checkpoint_seconds
        try:
            if checkpoints.publish(connection, self._notary) is None:
                pause = min(pause, WISH_SECONDS_MIN)  # a log that rested is signed soon after it moves again
        except (CheckpointRefused, TreeDamaged, OSError) as error:
            log.critical("no checkpoint was signed: %s", error)
        self._wish_due_at = time.monotonic() + WISH_SECONDS_MIN
        self._due_at = time.monotonic() + pause
