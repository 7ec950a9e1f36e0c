"""transparency_tiles: the Merkle tree over the whole event log, kept as tiles that only grow.

The leaves are read as PostgreSQL's binary COPY sends a row, because that is the encoding of a leaf
(``domain.transparency.leaf``) behind a count of fields: nothing is decoded on the way into the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import psycopg

from domain.transparency import leaf, merkle, tiles
from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import Range
from domain.transparency.tiles import TileId, Tiles, TreeDamaged

PAGE_LEAVES = 32 * tiles.TILE_WIDTH

COPY_LEAVES = """
COPY (SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events
      WHERE position > %s AND position <= %s ORDER BY position) TO STDOUT (FORMAT binary)
"""

READ_TILES = """
SELECT level, number, hashes FROM unnest(%s::smallint[], %s::bigint[]) AS wanted (level, number)
JOIN transparency_tiles USING (level, number)
"""

WRITE_TILES = """
INSERT INTO transparency_tiles (level, number, hashes)
SELECT * FROM unnest(%s::smallint[], %s::bigint[], %s::bytea[])
ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes
"""
"""Add tiles and let partial ones grow; a trigger refuses whatever would change a hash that stands there."""

TRACKED_SIZE = "SELECT position FROM projection_tracking WHERE name = 'transparency'"

EVENT_AT = """
SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events WHERE position = %s
"""

OWN_EVENT_AT = """
SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events
WHERE position = %s AND originator_id = %s
"""

CHARGE_OF_JOB = """
SELECT captured.position FROM usage_entries u
JOIN events settled ON settled.position = u.position
JOIN events captured ON captured.position > u.position AND captured.position <= u.position + 8
WHERE u.job_id = %(job_id)s AND captured.originator_id = %(wallet_id)s AND captured.topic = 'Wallet.HoldCaptured'
    AND convert_from(captured.state, 'UTF8')::jsonb ->> 'hold_id'
        = convert_from(settled.state, 'UTF8')::jsonb ->> 'request_id'
"""
"""Where a consumer's wallet paid for a job: the capture that one command wrote right after the settlement."""

EARNING_OF_JOB = """
SELECT credited.position FROM provider_earnings p
JOIN events credited ON credited.position > p.position AND credited.position <= p.position + 8
WHERE p.job_id = %(job_id)s AND credited.originator_id = %(wallet_id)s AND credited.topic = 'Wallet.EarningCredited'
    AND convert_from(credited.state, 'UTF8')::jsonb ->> 'reference' = p.job_id::text
"""
"""Where a provider's wallet was credited for a job."""

Connection = psycopg.Connection[tuple[Any, ...]]
Connect = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[tuple[Any, ...]]]]

_COPY_HEADER_BYTES = 19
_COPY_TRAILER = b"\xff\xff"
_FIELD_COUNT_BYTES = 2
"""What COPY puts before the first row, after the last one, and before the fields of each."""


def apply(connection: Connection, size: int, upto: int) -> None:
    """Add the events after position ``size`` to the tree, inside of the caller's transaction.

    Raises:
        TreeDamaged: the log has a gap there, or the stored tree does not have that size.
    """
    sha256 = hashlib.sha256
    hashes = [sha256(b"\x00" + row).digest() for row in _leaves(connection, size, upto)]
    if len(hashes) != upto - size:
        raise TreeDamaged(f"there are {len(hashes)} events after position {size} and up to {upto}")
    write_tiles(connection, tiles.append(size, hashes, read_tiles(connection, tiles.last_tiles(size))))


def _leaves(connection: Connection, after: int, upto: int) -> Generator[bytes, None, None]:
    """The leaves of a part of the log, in order."""
    skip = _COPY_HEADER_BYTES
    with connection.cursor().copy(COPY_LEAVES, (after, upto)) as copy:
        for row in copy:
            if row != _COPY_TRAILER:
                yield bytes(row[skip + _FIELD_COUNT_BYTES :])
            skip = 0


def read_tiles(connection: Connection, wanted: Collection[TileId]) -> Tiles:
    rows = connection.execute(READ_TILES, _columns(wanted), binary=True).fetchall()
    return {TileId(level, number): hashes for level, number, hashes in rows}


def write_tiles(connection: Connection, changed: Tiles) -> None:
    connection.execute(WRITE_TILES, (*_columns(changed), list(changed.values())))


def roots(connection: Connection, ranges: Iterable[Range]) -> list[bytes]:
    """The roots of ranges of the stored tree. Raises TreeDamaged."""
    asked = list(ranges)
    return tiles.roots_of(asked, read_tiles(connection, tiles.tiles_of(asked)))


def hashed_events(connection: Connection, first: int, last: int) -> Generator[tuple[LoggedEvent, bytes], None, None]:
    """The events of a part of the log, each with the hash that the tree holds for it, page by page.

    Raises:
        TreeDamaged: the tree holds no hash for one of them.
    """
    for begin in range(first - 1, last, PAGE_LEAVES):
        upto = min(begin + PAGE_LEAVES, last)
        numbers = range(begin // tiles.TILE_WIDTH, (upto - 1) // tiles.TILE_WIDTH + 1)
        stored = read_tiles(connection, [TileId(0, number) for number in numbers])
        for row in _leaves(connection, begin, upto):
            event = leaf.decode(row)
            yield event, hash_in(stored, event.position)


def hash_in(stored: Tiles, position: int) -> bytes:
    """The leaf hash that the tree holds for a position. Raises TreeDamaged."""
    return tiles.roots_of([(position - 1, position)], stored)[0]


def tree_size(connection: Connection) -> int:
    """How many events the tree covers."""
    row = connection.execute(TRACKED_SIZE).fetchone()
    return int(row[0]) if row else 0


class StoredTree:
    """The tree for a gateway: proofs, and where the events stand that are one's own."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    async def position_of_job(self, job_id: UUID, wallet_id: UUID) -> int | None:
        """Where a wallet paid for a job, or earned by it."""
        parameters = {"job_id": job_id, "wallet_id": wallet_id}
        async with self._connect() as connection:
            for statement in (CHARGE_OF_JOB, EARNING_OF_JOB):
                row = await (await connection.execute(statement, parameters, prepare=True)).fetchone()
                if row is not None:
                    return int(row[0])
        return None

    async def event(self, position: int, wallet_id: UUID | None = None) -> LoggedEvent | None:
        """The event at a position, of one wallet or of any aggregate."""
        async with self._connect() as connection:
            if wallet_id is None:
                cursor = await connection.execute(EVENT_AT, (position,), prepare=True, binary=True)
            else:
                cursor = await connection.execute(OWN_EVENT_AT, (position, wallet_id), prepare=True, binary=True)
            row = await cursor.fetchone()
        return _event(row) if row else None

    async def inclusion(self, position: int, size: int) -> tuple[bytes, list[bytes]]:
        """The leaf hash at a position, and the proof that it is in the tree of ``size`` events. Raises TreeDamaged."""
        own: Range = (position - 1, position)
        hashed, *proof = await self.roots([own, *merkle.inclusion_ranges(position - 1, size)])
        return hashed, proof

    async def roots(self, ranges: Sequence[Range]) -> list[bytes]:
        """The roots of ranges of the stored tree. Raises TreeDamaged."""
        wanted = tiles.tiles_of(ranges)
        async with self._connect() as connection:
            cursor = await connection.execute(READ_TILES, _columns(wanted), prepare=True, binary=True)
            stored = {TileId(level, number): hashes for level, number, hashes in await cursor.fetchall()}
        return tiles.roots_of(ranges, stored)


def _event(row: tuple[Any, ...]) -> LoggedEvent:
    position, originator_id, version, topic, recorded_at, state = row
    return LoggedEvent(position, originator_id, version, topic, leaf.microseconds_of(recorded_at), state)


def _columns(ids: Iterable[TileId]) -> tuple[list[int], list[int]]:
    listed = list(ids)
    return [tile.level for tile in listed], [tile.number for tile in listed]
