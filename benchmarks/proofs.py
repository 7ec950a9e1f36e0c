"""How fast the transparency log follows the event log, and how fast it proves.

``python -m benchmarks.proofs --json`` prints one JSON object. The events are copied straight into a database of their
own. Baseline: SHA-256 over the same leaves and nothing else, the ceiling of anything that hashes each event once.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import statistics
import struct
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from adapters.crypto.notary import KeyFileNotary
from adapters.postgres import migrate
from api.public import proving
from api.public.ports import TransparencyLog
from benchmarks.databases import arguments, scratch_database, server, show
from domain.transparency import audit, checkpoint, export, note
from projections import checkpoints, transparency
from projections.checkpoints import StoredCheckpoints
from projections.transparency import StoredTree
from projections.transparency_follower import TransparencyFollower

PROOFS = 1_000
PAYLOAD_BYTES = 420
"""About what an event of the ledger has."""

COPY_EVENTS = """
COPY events (position, originator_id, originator_version, topic, recorded_at, state) FROM STDIN (FORMAT binary)
"""
ROW = struct.Struct(">hIqI16sIiI22sIqI")
HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)


def _rows(count: int) -> Generator[bytes, None, None]:
    yield HEADER
    random_bytes = random.Random(1).randbytes  # the same events in every run
    for position in range(1, count + 1):
        originator = random_bytes(16)
        payload = (
            f'{{"originator_id":"{uuid.UUID(bytes=originator)}","originator_version":1,"amount":{position},"filler":"'
        )
        payload += "x" * (PAYLOAD_BYTES - len(payload) - 2) + '"}'
        head = ROW.pack(
            6, 8, position, 16, originator, 4, 1, 22, b"Wallet.EarningCredited", 8, 817_000_000_000_000 + position,
            len(payload),
        )  # fmt: skip
        yield head + payload.encode()
    yield b"\xff\xff"


def _fill(dsn: str, count: int) -> None:
    with psycopg.connect(dsn) as connection:
        with connection.cursor().copy(COPY_EVENTS) as copy:
            for row in _rows(count):
                copy.write(row)
        connection.execute("UPDATE ledger_head SET position = %s", (count,))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE events")


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _hash_leaves(leaves: Sequence[bytes]) -> None:
    sha256 = hashlib.sha256
    for leaf in leaves:
        sha256(leaf).digest()


def _baseline(count: int) -> float:
    """Leaves hashed in a second, from memory."""
    leaves = [row[2:] for row in _rows(min(count, 100_000))][1:-1]
    return len(leaves) / _timed(lambda: _hash_leaves(leaves))


async def _latencies(count: int, ask: Callable[[int], Coroutine[Any, Any, object]]) -> list[float]:
    chosen = random.Random(2)
    found = []
    for _ in range(PROOFS):
        number = chosen.randint(1, count)
        began = time.perf_counter()
        await ask(number)
        found.append((time.perf_counter() - began) * 1000)
    return found


async def _prove(dsn: str, count: int) -> dict[str, float]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:

        @asynccontextmanager
        async def connect() -> AsyncGenerator[psycopg.AsyncConnection[tuple[Any, ...]], None]:
            yield connection

        log = TransparencyLog(StoredTree(connect), StoredCheckpoints(connect))
        made = await proving.prove_inclusion(log, count // 3)
        inclusion = await _latencies(count, lambda position: proving.prove_inclusion(log, position))
        consistency = await _latencies(count, lambda size: proving.prove_consistency(log, size, None))
    return {
        "inclusion_proof_p50_ms": _percentile(inclusion, 50),
        "inclusion_proof_p99_ms": _percentile(inclusion, 99),
        "consistency_proof_p50_ms": _percentile(consistency, 50),
        "consistency_proof_p99_ms": _percentile(consistency, 99),
        "inclusion_proof_bytes": 32 * len(made.proof),
    }


def _percentile(values: Sequence[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


def _verify(dsn: str, count: int) -> float:
    """Events of an export that are verified in a second, reading the file included."""
    with tempfile.TemporaryFile() as file:
        with psycopg.connect(dsn) as connection:
            for line in export.lines(transparency.hashed_events(connection, 1, count)):
                file.write(line)
            signed = checkpoints.newest_note(connection)
        assert signed is not None
        trusted = [checkpoint.read(note.parse(signed))]
        file.seek(0)
        began = time.perf_counter()
        assert audit.verify(file, trusted).ok
        return count / (time.perf_counter() - began)


def _measure(dsn: str, count: int) -> dict[str, float]:
    migrate.upgrade(dsn)
    _fill(dsn, count)
    follower = TransparencyFollower(dsn, None, checkpoint_seconds=1.0)
    appended = _timed(follower.catch_up)
    with tempfile.TemporaryDirectory() as folder, psycopg.connect(dsn, autocommit=True) as connection:
        notary = KeyFileNotary(Path(folder) / "checkpoint.key")
        signing = _timed(lambda: checkpoints.publish(connection, notary))
    report = {
        "leaves": count,
        "appended_leaves_per_second": round(count / appended),
        "baseline_sha256_leaves_per_second": round(_baseline(count)),
        "checkpoint_ms": round(signing * 1000, 2),
    }
    return report | asyncio.run(_prove(dsn, count)) | {"verified_events_per_second": round(_verify(dsn, count))}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--leaves", type=int, default=1_000_000)
    options = parser.parse_args()
    with server(options.database_url) as server_dsn, scratch_database(server_dsn) as dsn:
        show(_measure(dsn, options.leaves), as_json=options.json)


if __name__ == "__main__":
    main()
