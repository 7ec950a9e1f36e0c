"""Rebuilds read models beside the live ones and swaps them in, while everybody goes on reading and writing.

The replay fills tables in a schema of its own. Only for the last stretch it holds the head of the log, so that nothing
is written for a moment; then one transaction puts the new tables in the place of the old. Until that commits, the live
tables are as they were, whatever happens, and the next run removes what a crash left behind.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from psycopg import sql

from projections import tables
from projections.page import Connection
from projections.projection import Projection
from projections.registry import INLINE, replaying
from projections.replay import PAGE_EVENTS, Arrived, Replay
from projections.runner import ADVANCE_TRACKING, ENSURE_TRACKING

log = logging.getLogger(__name__)

STRETCH_EVENTS = 1_000
"""What may be left to replay while the head is held."""

LOCK_SECONDS = 1.0
"""How long the swap waits for readers before it lets everybody go on and tries again."""

SWAP_TRIES = 20

_REBUILD_LOCK = 7_224_318_552
"""The advisory lock of the one rebuild at a time."""

TRY_REBUILD_LOCK = "SELECT pg_try_advisory_xact_lock(%s)"
LEFTOVERS = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'shadow\\_%'"
DROP_SCHEMA = "DROP SCHEMA {} CASCADE"
CREATE_SCHEMA = "CREATE SCHEMA {}"
USE_SCHEMA = "SET search_path = {}, public"
HEAD = "SELECT position FROM ledger_head"

LOCK_TRACKING = "SELECT FROM projection_tracking WHERE name = ANY(%s) ORDER BY name FOR UPDATE"
"""A runner that is applying a page is waited for; after that it passes these by."""

HOLD_HEAD = "SELECT position FROM ledger_head FOR UPDATE"
LOCK_TABLES = "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE"
LIMIT_WAIT = "SELECT set_config('lock_timeout', %s, true)"
ANALYZE = "ANALYZE {}"
DROP_TABLE = "DROP TABLE {}"
MOVE_TABLE = "ALTER TABLE {} SET SCHEMA {}"


class RebuildFailed(Exception):
    """The read models were not rebuilt. The live tables are as they were."""


class RebuildRunning(RebuildFailed):
    """Another rebuild runs on this database; wait until it ends. Nothing was changed."""


class TablesInUse(RebuildFailed):
    """Somebody reads the tables in a transaction that does not end; end it and rebuild again. Nothing was changed."""


class TablesTied(RebuildFailed):
    """Something was made on the tables that new ones would not have; drop it first. Nothing was changed."""


class NotTheOwner(RebuildFailed):
    """Only the owner of the tables can rebuild them; use the address with which 'darkbloomd migrate' runs. Nothing was
    changed."""


class Rebuilt(NamedTuple):
    """``position`` is where the new tables stand; ``held_seconds`` how long nothing could be written."""

    tables: Sequence[str]
    position: int
    seconds: float
    held_seconds: float


def rebuild(dsn: str, names: Sequence[str] = (), *, page_events: int = PAGE_EVENTS) -> Rebuilt:
    """Rebuild the named read models, or all, from the first event on.

    It needs sessions of its own (no transaction pooler) and the rights of the tables' owner.

    Raises:
        UnknownProjection: there is no such read model.
        RebuildFailed: one of the reasons above.
        EventNotReadable: an event cannot be read by this build.
    """
    began = time.monotonic()
    projections = replaying(tuple(names))
    schema = f"shadow_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as guard, _alone(guard), psycopg.connect(dsn, autocommit=True) as admin:
        _drop_leftovers(admin)
        try:
            run = _Rebuild(admin, schema, projections)
            run.make_tables()
            with Replay(dsn, projections, run.open_lane, page_events=page_events) as replay:
                run.fill(replay)
                position, held_seconds = run.swap(replay)
        except BaseException as error:
            with contextlib.suppress(psycopg.Error):
                _drop_leftovers(admin)
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise NotTheOwner(" ".join(str(NotTheOwner.__doc__).split())) from None
            raise
    return Rebuilt(run.names, position, time.monotonic() - began, held_seconds)


@contextmanager
def _alone(guard: Connection) -> Generator[None, None, None]:
    """Keep other rebuilds out, with a lock that ends when this process does."""
    with guard.transaction():
        if guard.execute(TRY_REBUILD_LOCK, (_REBUILD_LOCK,)).fetchone() != (True,):
            raise RebuildRunning(RebuildRunning.__doc__)
        yield


def _drop_leftovers(connection: Connection) -> None:
    for (schema,) in connection.execute(LEFTOVERS).fetchall():
        connection.execute(sql.SQL(DROP_SCHEMA).format(sql.Identifier(schema)))


class _Rebuild:
    def __init__(self, admin: Connection, schema: str, projections: Sequence[Projection]) -> None:
        self.names = sorted(projection.name for projection in projections)
        self._admin = admin
        self._schema = schema
        self._only_adding = [projection.name for projection in projections if projection.only_adds]

    def make_tables(self) -> None:
        """Empty tables, with their primary keys where rows are looked up; all other indexes are made later.

        Raises:
            TablesTied: there are views, triggers or the like on the live tables.
        """
        if tied := tables.tied_to(self._admin, self.names):
            raise TablesTied(f"{TablesTied.__doc__} ({', '.join(tied)})")
        indexes = tables.index_definitions(self._admin, self.names)
        at_once = [one for one in indexes if one.is_primary_key and one.table not in self._only_adding]
        self._indexes_for_later = [one for one in indexes if one not in at_once]
        self._admin.execute(sql.SQL(CREATE_SCHEMA).format(sql.Identifier(self._schema)))
        self._use_schema(self._admin)
        for name in self.names:
            tables.create_shadow(self._admin, name)
        _make(self._admin, at_once)
        self._admin.execute(ENSURE_TRACKING, ([name for name in self.names if name not in INLINE],))

    def open_lane(self, connection: Connection, _: Sequence[Projection]) -> None:
        self._use_schema(connection)

    def fill(self, replay: Replay) -> None:
        """Replay all but what is written in the meantime."""
        self._advance(replay, self._head(), self._finish)

    def swap(self, replay: Replay) -> tuple[int, float]:
        """Replay the last stretch and put the tables in place; returns the position and how long the head was held.

        Raises:
            TablesInUse: readers did not let go of the tables in many tries.
        """
        for _ in range(SWAP_TRIES):
            while self._head() - replay.position > STRETCH_EVENTS:
                self._advance(replay, self._head())
            try:
                return self._try_to_swap(replay)
            except psycopg.errors.LockNotAvailable:
                log.info("readers hold the tables; the swap tries again")
        raise TablesInUse(TablesInUse.__doc__)

    def _try_to_swap(self, replay: Replay) -> tuple[int, float]:
        admin = self._admin
        with admin.transaction():
            admin.execute(LOCK_TRACKING, (self.names,))
            began = time.monotonic()
            admin.execute(LIMIT_WAIT, (f"{LOCK_SECONDS}s",))
            # The order in which the writer takes its locks: the head, then the tables.
            row = admin.execute(HOLD_HEAD).fetchone()
            assert row is not None
            self._advance(replay, row[0])
            live = [sql.Identifier(tables.LIVE, name) for name in self.names]
            admin.execute(sql.SQL(LOCK_TABLES).format(sql.SQL(", ").join(live)))
            for name, old in zip(self.names, live, strict=True):
                admin.execute(sql.SQL(DROP_TABLE).format(old))
                new = sql.Identifier(self._schema, name)
                admin.execute(sql.SQL(MOVE_TABLE).format(new, sql.Identifier(tables.LIVE)))
            admin.execute(ADVANCE_TRACKING, (row[0], self.names))
            admin.execute(sql.SQL(DROP_SCHEMA).format(sql.Identifier(self._schema)))
        return row[0], time.monotonic() - began

    def _advance(self, replay: Replay, position: int, arrived: Arrived | None = None) -> None:
        replay.advance(dict.fromkeys(self.names, position), arrived)

    def _head(self) -> int:
        row = self._admin.execute(HEAD).fetchone()
        assert row is not None
        return int(row[0])

    def _use_schema(self, connection: Connection) -> None:
        connection.execute(sql.SQL(USE_SCHEMA).format(sql.Identifier(self._schema)))

    def _finish(self, connection: Connection, names: Sequence[str]) -> None:
        _make(connection, [index for index in self._indexes_for_later if index.table in names])
        for name in names:
            connection.execute(sql.SQL(ANALYZE).format(sql.Identifier(name)))


def _make(connection: Connection, indexes: Iterable[tables.IndexDefinition]) -> None:
    for index in indexes:
        connection.execute(sql.SQL(index.statement))
