"""From a time to a position of the log, and the one snapshot in which a question is answered."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from domain.errors import InvalidRequest

Connection = psycopg.Connection[tuple[Any, ...]]

SETTLED_SECONDS = 120
"""A transaction takes far less than this; so nothing can still be recorded at a time that lies longer back."""

BEFORE_THE_LOG = datetime(2020, 1, 1, tzinfo=UTC)
"""The time of position 0, which stands in the head of an empty log."""

HEAD_AND_CLOCK = "SELECT position, recorded_at, now() FROM ledger_head"

POSITION_AT = """
WITH RECURSIVE search (low, high) AS (
    SELECT 0::bigint, %(head)s::bigint
    UNION ALL
    SELECT CASE WHEN e.recorded_at <= %(at)s THEN e.position ELSE low END,
           CASE WHEN e.recorded_at <= %(at)s THEN high ELSE e.position - 1 END
    FROM search JOIN events e ON e.position = (low + high + 1) / 2
    WHERE low < high
)
SELECT low FROM search WHERE low = high
"""
"""The last position that was recorded at or before a time: a binary search, because recorded times never run back."""

RECORDED_AT = "SELECT recorded_at FROM events WHERE position = %s"

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")


class Head(NamedTuple):
    """The end of the log, and the time by the database's clock."""

    position: int
    recorded_at: datetime
    now: datetime


class AsOf(NamedTuple):
    """A place in the log. ``final``: nothing that is recorded later can change what is asked of it."""

    position: int
    at: datetime
    final: bool


@contextmanager
def snapshot(connection: Connection, *, timeout_seconds: float = 0) -> Generator[None, None, None]:
    """A read-only transaction that sees one moment, in UTC. A timeout of 0 is none."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute(
            "SELECT set_config('TimeZone', 'UTC', true), set_config('statement_timeout', %s, true)",
            (f"{int(timeout_seconds * 1000)}ms",),
        )
        yield


def parse_time(text: str, name: str) -> datetime:
    """An RFC 3339 time of at most microseconds.

    Raises:
        InvalidRequest: it is none; ``name`` says which parameter it was.
    """
    text = text.replace(" ", "+")  # a plus that was not escaped in a query
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text.upper())
    except ValueError:
        pass
    raise InvalidRequest(f"'{name}' must be a time such as 2026-05-31T23:59:59.999999Z.", param=name)


def head_of(connection: Connection) -> Head:
    row = connection.execute(HEAD_AND_CLOCK).fetchone()
    assert row is not None
    return Head(*row)


def at_head(connection: Connection) -> AsOf:
    """The newest position; the next question may find another one."""
    head = head_of(connection)
    return AsOf(head.position, head.recorded_at, final=False)


def at_position(connection: Connection, position: int) -> AsOf:
    """Raises InvalidRequest for a position that the log does not have yet."""
    head = head_of(connection)
    if not 0 <= position <= head.position:
        raise InvalidRequest(f"The log has the positions 0 to {head.position} now.", param="position")
    row = connection.execute(RECORDED_AT, (position,)).fetchone()
    return AsOf(position, row[0] if row else BEFORE_THE_LOG, final=True)


def at_time(connection: Connection, at: datetime, *, name: str = "at") -> AsOf:
    """The last position that was recorded at or before a time.

    Raises:
        InvalidRequest: the time lies in the future; nobody can answer that for ever.
    """
    head = head_of(connection)
    if at > head.now:
        raise InvalidRequest(f"'{name}' lies in the future.", param=name)
    row = connection.execute(POSITION_AT, {"head": head.position, "at": at}).fetchone()
    assert row is not None
    settled = head.recorded_at > at or at < head.now - timedelta(seconds=SETTLED_SECONDS)
    return AsOf(row[0], at, final=settled)


class Stretch(NamedTuple):
    """The entries after one position, up to and including another."""

    after: AsOf
    upto: AsOf


def between(connection: Connection, start: datetime | None, end: datetime | None) -> Stretch:
    """What was recorded after ``start``, up to and including ``end``; open ends are the log's own.

    Half-open on purpose: the closing balance of one stretch is the opening balance of the next.

    Raises:
        InvalidRequest: the end lies before the start, or one of them in the future.
    """
    upto = at_time(connection, end, name="to") if end else at_head(connection)
    if start is None:
        return Stretch(AsOf(0, BEFORE_THE_LOG, final=True), upto)
    after = at_time(connection, start, name="from")
    if end is not None and end < start:
        raise InvalidRequest("'to' lies before 'from'.", param="to")
    return Stretch(after, upto)
