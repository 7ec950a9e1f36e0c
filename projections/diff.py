"""Replays the log and compares what comes out with the live tables, row by row (money, 12.7).

It only reads the live tables; the replay goes into temporary tables of its own sessions, so read access and the
right to make temporary tables are enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from multiprocessing import get_context

import msgspec
import psycopg
from psycopg import sql

from projections import tables
from projections.page import Connection
from projections.projection import Projection
from projections.registry import INLINE, READ_MODELS, replaying
from projections.replay import PAGE_EVENTS, Replay

ONE_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
KEEP_TABLES = "LOCK TABLE {} IN ACCESS SHARE MODE"
"""Before the snapshot is taken: a rebuild that swapped a table afterwards would leave it empty in the snapshot."""

STANDING = """
SELECT 'head', position FROM ledger_head UNION ALL SELECT name, position FROM projection_tracking
"""

CANONICAL_TEXT = """
SELECT set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO, YMD', false),
       set_config('bytea_output', 'hex', false)
"""
"""A row has one text, whatever the session's or the database's taste."""

ROWS = "COPY (SELECT * FROM {} ORDER BY {}) TO STDOUT"
"""One message a row, in the order of the primary key."""

NO_ROWS = "SELECT * FROM {} LIMIT 0"
HAS_ROW = "SELECT EXISTS (SELECT FROM {} WHERE {})"

Row = dict[str, str | None]


class Compared(msgspec.Struct, frozen=True):
    """One table at one position. ``rows`` are those of the replay; hashes are SHA-256 over the rows' canonical text.

    ``first_difference`` is the first row in the order of the primary key that is changed or on one side only. Without a
    live table at that position its hash and the verdict are null.
    """

    name: str
    position: int
    rows: int
    live_sha256: str | None
    replayed_sha256: str
    identical: bool | None
    first_difference: str | None


def replay_and_compare(
    dsn: str, names: Sequence[str] = (), *, to_position: int | None = None, page_events: int = PAGE_EVENTS
) -> list[Compared]:
    """Replay the named read models, or all, and compare each with the live table at the position where that one stands.

    With ``to_position`` the replay goes there instead, and is only compared where the live table stands there too.

    Raises:
        UnknownProjection: there is no such read model.
        EventNotReadable: an event cannot be read by this build.
    """
    projections = replaying(tuple(names))
    with (
        psycopg.connect(dsn, autocommit=True) as live,
        Replay(dsn, projections, _make_temporary, page_events=page_events) as replay,
    ):
        live.execute(CANONICAL_TEXT)
        # The bulk of it without a snapshot, which would keep the server from cleaning up in the meantime.
        replay.advance(_limits(_standing(live, projections), to_position))
        with live.transaction():
            live.execute(ONE_SNAPSHOT)
            kept = [sql.Identifier(tables.LIVE, projection.name) for projection in projections]
            live.execute(sql.SQL(KEEP_TABLES).format(sql.SQL(", ").join(kept)))
            standing = _standing(live, projections)
            limits = _limits(standing, to_position)
            replay.advance(limits)
            return [
                _compare(live, replay.connection_of(name), name, position, comparable=position == standing[name])
                for name, position in limits.items()
            ]


class Replays:
    """Replays against one database, for whoever asks over HTTP. Each runs in a process of its own, because it would
    take the processor from everything else in this one."""

    names: Sequence[str] = tuple(READ_MODELS)

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def replay(self, projections: Sequence[str], to_position: int | None) -> list[Compared]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            return apart.submit(replay_and_compare, self._dsn, projections, to_position=to_position).result()


def _make_temporary(connection: Connection, projections: Sequence[Projection]) -> None:
    connection.execute(CANONICAL_TEXT)
    for projection in projections:
        tables.create_temporary(connection, projection.name)


def _standing(live: Connection, projections: Sequence[Projection]) -> dict[str, int]:
    """Where each live table stands: at the head when the writer keeps it, else where its tracking says."""
    standing: dict[str, int] = dict(live.execute(STANDING).fetchall())
    return {
        projection.name: standing["head"] if projection.name in INLINE else standing.get(projection.name, 0)
        for projection in projections
    }


def _limits(standing: Mapping[str, int], to_position: int | None) -> dict[str, int]:
    return {name: position if to_position is None else to_position for name, position in standing.items()}


def _compare(live: Connection, replayed: Connection, name: str, position: int, *, comparable: bool) -> Compared:
    key = tables.primary_key(live, name)
    ours = _rows(replayed, sql.Identifier(name), key)
    theirs = _rows(live, sql.Identifier(tables.LIVE, name), key) if comparable else iter(())
    live_hash, replayed_hash, rows = hashlib.sha256(), hashlib.sha256(), 0
    first: tuple[bytes | None, bytes | None] | None = None
    for live_row, replayed_row in zip_longest(theirs, ours):
        if live_row is not None:
            live_hash.update(live_row)
        if replayed_row is not None:
            replayed_hash.update(replayed_row)
            rows += 1
        if first is None and live_row != replayed_row:
            first = (live_row, replayed_row)
    return Compared(
        name=name,
        position=position,
        rows=rows,
        live_sha256=live_hash.hexdigest() if comparable else None,
        replayed_sha256=replayed_hash.hexdigest(),
        identical=first is None if comparable else None,
        first_difference=_describe(live, name, key, *first) if comparable and first else None,
    )


def _rows(connection: Connection, table: sql.Identifier, key: Sequence[str]) -> Iterator[bytes]:
    order = sql.SQL(", ").join(map(sql.Identifier, key))
    with connection.cursor().copy(sql.SQL(ROWS).format(table, order)) as copy:
        for row in copy:
            yield bytes(row)


def _describe(
    live: Connection, name: str, key: Sequence[str], live_text: bytes | None, replayed_text: bytes | None
) -> str:
    table = sql.Identifier(tables.LIVE, name)
    described = live.execute(sql.SQL(NO_ROWS).format(table)).description
    assert described is not None
    columns = [column.name for column in described]
    live_row, replayed_row = _parse(columns, live_text), _parse(columns, replayed_text)
    if live_row and replayed_row and any(live_row[column] != replayed_row[column] for column in key):
        # Two keys side by side: one of the rows is missing on the other side.
        wanted = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in key)
        has_row = live.execute(sql.SQL(HAS_ROW).format(table, wanted), [replayed_row[column] for column in key])
        if has_row.fetchone() == (True,):
            replayed_row = None
        else:
            live_row = None
    if replayed_row is None:
        return f"only in the live table: {_text(live_row or {})}"
    if live_row is None:
        return f"missing in the live table: {_text(replayed_row)}"
    live_part = {column: value for column, value in live_row.items() if value != replayed_row[column]}
    replayed_part = {column: replayed_row[column] for column in live_part}
    place = _text({column: live_row[column] for column in key})
    return f"{place}: live has {_text(live_part)}, the log says {_text(replayed_part)}"


def _parse(columns: Sequence[str], text: bytes | None) -> Row | None:
    if text is None:
        return None
    fields = text.decode().removesuffix("\n").split("\t")
    return {column: None if field == "\\N" else field for column, field in zip(columns, fields, strict=True)}


def _text(row: Row) -> str:
    return ", ".join(f"{column}={value}" for column, value in row.items())
