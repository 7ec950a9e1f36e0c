"""How many events a second a rebuild of all read models takes in, and how far they lag behind a busy writer.

The log is made of realistic money cycles. The eventsourcing library's own way of reading a log (its recorder's pages,
each event decoded, nothing applied) is measured on the same database in the same run. Every measured part runs in a
process of its own, so that its memory is its own.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.pool
import os
import secrets
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict

from adapters.postgres.mapper import EventMapper
from adapters.postgres.writer import LedgerWriter
from benchmarks import cycles
from benchmarks.databases import arguments, scratch_database, server, show
from domain.ledger import Admit, Dispatch, GrantCredit, Settle
from domain.requests import job_id_of
from projections.balances import Balances
from projections.lag import lag_of
from projections.open_requests import OpenRequests
from projections.rebuild import rebuild
from projections.registry import lagging
from projections.runner import ProjectionRunner
from projections.usage import UsageEntries

T = TypeVar("T")

IN_FLIGHT = 256
"""Requests that the writer's process has under way at a time."""

LIBRARY_PAGE = 1_000
POLL_SECONDS = 0.005

LIBRARY_VIEW = """
CREATE VIEW stored_events AS
SELECT originator_id, originator_version, topic, state, position AS notification_id FROM events
"""
"""The log under the names that the library's recorder reads."""


# --- a whole log -----------------------------------------------------------------------------------------------------


def rebuild_rate(dsn: str) -> dict[str, float]:
    rebuilt = rebuild(dsn)
    return {
        "rebuild_events_per_second": rebuilt.position / rebuilt.seconds,
        "rebuild_held_ms": rebuilt.held_seconds * 1000,
        "peak_rss_mb": peak_rss_mb(),
    }


def library_rate(dsn: str) -> float:
    """The library's pages, each event decoded by our mapper: what its own projections would begin with."""
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    place = conninfo_to_dict(dsn)
    datastore = PostgresDatastore(
        *(str(place.get(name, "")) for name in ("dbname", "host", "port", "user", "password"))
    )
    recorder = PostgresApplicationRecorder(datastore)
    mapper = EventMapper()
    count, began = 0, time.perf_counter()
    while page := recorder.select_notifications(count, LIBRARY_PAGE, inclusive_of_start=False):
        for stored in page:
            mapper.to_domain_event(
                StoredEvent(stored.originator_id, stored.originator_version, stored.topic, stored.state)
            )
        count += len(page)
    seconds = time.perf_counter() - began
    datastore.close()
    return count / seconds


# --- a busy writer ---------------------------------------------------------------------------------------------------


def write_cycles(dsn: str, seconds: float, cycles_per_second: float | None) -> float:
    """Write money cycles for some seconds, as fast as it goes or at a pace; returns the events written a second."""
    writer = LedgerWriter(dsn, [Balances(), UsageEntries(), OpenRequests()], queue_max=100_000)
    writer.start()
    try:
        return asyncio.run(_write_cycles(writer, seconds, cycles_per_second))
    finally:
        writer.stop()


async def _write_cycles(writer: LedgerWriter, seconds: float, cycles_per_second: float | None) -> float:
    random = Random(secrets.randbits(32))
    accounts = [f"acct_{number:024x}" for number in range(cycles.ACCOUNTS)]
    await asyncio.gather(
        *(
            writer.run(GrantCredit(account_id=account_id, amount_micro_usd=10**12, reference=secrets.token_hex(8)))
            for account_id in accounts
        )
    )
    began, done = time.perf_counter(), 0

    async def client() -> None:
        nonlocal done
        while (now := time.perf_counter() - began) < seconds:
            if cycles_per_second is not None and done >= now * cycles_per_second:
                await asyncio.sleep(0.005)
                continue
            done += 1
            await _cycle(writer, random, random.choice(accounts))

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return done * cycles.EVENTS_PER_CYCLE / (time.perf_counter() - began)


async def _cycle(writer: LedgerWriter, random: Random, account_id: str) -> None:
    request_id = UUID(int=random.getrandbits(128), version=4)
    machine = random.randrange(cycles.MACHINES)
    await writer.run(
        Admit(
            request_id=request_id,
            account_id=account_id,
            key_id="key_0123456789abcdef",
            gateway_id=cycles.GATEWAY_ID,
            model=random.choice(cycles.MODELS),
            prompt_estimate=100,
            prompt_bound=400,
            output_bound=2_048,
            quote=cycles.QUOTE,
            expires_at=cycles.BEGINNING,
        )
    )
    await writer.run(
        Dispatch(
            request_id=request_id,
            attempt=1,
            provider_id=cycles.GATEWAY_ID,
            machine_id=f"{machine:064x}",
            provider_key="key",
            provider_account_id=f"prov_{machine % cycles.PROVIDERS:024x}",
        )
    )
    await writer.run(
        Settle(
            request_id=request_id,
            account_id=account_id,
            job_id=str(job_id_of(request_id, 1)),
            claimed_prompt_tokens=300,
            claimed_completion_tokens=900,
            completion_bound=2_000,
        )
    )


def run_projections(dsn: str, stop: Event) -> None:
    runner = ProjectionRunner(dsn, lagging())
    runner.start()
    stop.wait()
    runner.stop()


def lag_samples(dsn: str, writing: multiprocessing.pool.AsyncResult[float]) -> list[float]:
    """The age of the oldest event that some projection has not applied, looked at again and again; milliseconds."""
    samples: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not writing.ready():
            samples.append(max((one.seconds for one in lag_of(connection)), default=0.0) * 1000)
            time.sleep(POLL_SECONDS)
    return samples


# --- the whole benchmark ---------------------------------------------------------------------------------------------


def measure(server_dsn: str, events: int, seconds: float, rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, length in (("_short", events // 4), ("", events)):
        with scratch_database(server_dsn) as dsn:
            figures[f"events{name}"] = cycles.fill(dsn, length)
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(LIBRARY_VIEW)
            rebuilt, library = [], []
            for _ in range(rounds):  # in turns, so that what else the machine does falls on both
                rebuilt.append(alone(rebuild_rate, dsn))
                library.append(alone(library_rate, dsn))
            for figure in ("rebuild_events_per_second", "rebuild_held_ms"):
                figures[f"{figure}{name}"] = statistics.median(one[figure] for one in rebuilt)
            figures[f"peak_rss_mb{name}"] = max(one["peak_rss_mb"] for one in rebuilt)
            figures[f"decode_only_events_per_second{name}"] = statistics.median(library)
    with scratch_database(server_dsn) as dsn:
        figures |= measure_lag(dsn, seconds)
    return {name: round(value, 1) for name, value in figures.items()}


def measure_lag(dsn: str, seconds: float) -> dict[str, float]:
    full = alone(write_cycles, dsn, seconds / 2, None)
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    runner = spawn.Process(target=run_projections, args=(dsn, stop))
    runner.start()
    while_behind(dsn)
    with spawn.Pool(1) as pool:
        writing = pool.apply_async(write_cycles, (dsn, seconds, full / 2 / cycles.EVENTS_PER_CYCLE))
        samples = lag_samples(dsn, writing)
        half = writing.get()
    stop.set()
    runner.join()
    percentiles = statistics.quantiles(samples, n=100, method="inclusive")
    return {
        "full_write_events_per_second": full,
        "live_write_events_per_second": half,
        "live_lag_p50_ms": percentiles[49],
        "live_lag_p99_ms": percentiles[98],
        "live_lag_samples": len(samples),
    }


def while_behind(dsn: str) -> None:
    """Wait until the runner has read what was written before it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not (found := lag_of(connection)) or any(one.positions for one in found):
            time.sleep(0.1)


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """Run something in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def peak_rss_mb() -> float:
    """The most memory that this process ever had, in MB of 2**20 bytes."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--events", type=int, default=600_000, help="length of the log that is rebuilt")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long the busy writer writes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of reading the log, of which the median counts")
    options = parser.parse_args()
    logging.getLogger("adapters.postgres").setLevel(logging.ERROR)
    with server(options.database_url) as dsn:
        show(measure(dsn, options.events, options.seconds, options.rounds), as_json=options.json)


if __name__ == "__main__":
    main()
