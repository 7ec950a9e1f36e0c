"""What the ledger writes in a second, and how long one caller waits for its commit.

A money cycle is what one paid request does to the books: admit, dispatch, settle, eight events with the journal entry,
each command durable before the next begins. Everything runs on this machine, PostgreSQL with fsync included. Two other
ways to write are measured in the same run: the stock library, which saves once a command, and the bare COPY of the very
same rows, which decides nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import statistics
import threading
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from adapters.collector import settle_collector
from adapters.postgres.writer import LedgerWriter
from benchmarks.databases import arguments, scratch_database, server, show
from benchmarks.stock_ledger import StockLedger
from domain import ledger
from domain.pricing import quote_for
from domain.requests import job_id_of
from projections.balances import Balances
from projections.open_requests import OpenRequests
from projections.usage import UsageEntries

ACCOUNTS = 10_000
PROVIDERS = 200
CREDIT_MICRO_USD = 10**12
EVENTS_A_CYCLE = 8
CLIENTS = 512
"""Requests in flight. A gateway under load has hundreds; each waits for its own commit."""

QUOTE = quote_for("darkbloom-tiny")
GATEWAY = str(UUID(int=1))
COPY_BATCH_ROWS = 4_000
WARM_UP_SECONDS = 3.0
AUTOVACUUM_COST_DELAY = "2ms"
"""PostgreSQL's default for its own vacuums. One by hand has none, and takes one of two cores for itself."""


def account(number: int) -> str:
    return f"acct_{number:05d}"


class Traffic:
    """Money cycles over accounts whose popularity follows Zipf's law with exponent 1, from a seed."""

    def __init__(self, seed: int, accounts: int = ACCOUNTS) -> None:
        self._random = Random(seed)
        self._accounts = [account(number) for number in range(accounts)]
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, accounts + 1)))

    def cycle(self) -> Cycle:
        spot = bisect(self._weights, self._random.random() * self._weights[-1])
        request_id = UUID(int=self._random.getrandbits(128), version=4)
        return Cycle(request_id, self._accounts[spot], self._random.randrange(PROVIDERS))


class Cycle(NamedTuple):
    request_id: UUID
    account_id: str
    machine: int

    def commands(self) -> Iterator[ledger.Command[Any]]:
        """The three commands of one paid request, in their order."""
        yield ledger.Admit(
            correlation_id=str(self.request_id),
            request_id=self.request_id,
            account_id=self.account_id,
            key_id="key_benchmark",
            gateway_id=GATEWAY,
            model="darkbloom-tiny",
            prompt_estimate=200,
            prompt_bound=800,
            output_bound=512,
            quote=QUOTE,
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
        yield ledger.Dispatch(
            correlation_id=str(self.request_id),
            request_id=self.request_id,
            attempt=1,
            provider_id=f"session_{self.machine}",
            machine_id=f"{self.machine:064x}",
            provider_key=f"{self.machine:044d}",
            provider_account_id=f"provider_{self.machine}",
        )
        yield ledger.Settle(
            correlation_id=str(self.request_id),
            request_id=self.request_id,
            account_id=self.account_id,
            job_id=str(job_id_of(self.request_id, 1)),
            claimed_prompt_tokens=180,
            claimed_completion_tokens=240,
            completion_bound=512,
        )


def open_writer(dsn: str) -> LedgerWriter:
    writer = LedgerWriter(dsn, [Balances(), UsageEntries(), OpenRequests()])
    settle_collector()
    writer.start()
    return writer


def grants(accounts: int) -> list[ledger.GrantCredit]:
    return [
        ledger.GrantCredit(account_id=account(number), amount_micro_usd=CREDIT_MICRO_USD, reference=f"fund-{number}")
        for number in range(accounts)
    ]


async def fund(writer: LedgerWriter, accounts: int) -> None:
    for part in _batched(grants(accounts), 2_000):
        await asyncio.gather(*(writer.run(grant) for grant in part))


def _batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def closed_loop(writer: LedgerWriter, next_cycle: Callable[[], Cycle], clients: int, seconds: float) -> float:
    """Cycles per second with so many clients, each beginning its next cycle when its last one is settled."""
    done = 0
    until = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            for command in next_cycle().commands():
                await writer.run(command)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.perf_counter() - began)


async def open_loop(writer: LedgerWriter, next_cycle: Callable[[], Cycle], rate: float, seconds: float) -> list[float]:
    """Milliseconds from sending a command to its answer, at a fixed rate of cycles that waits for nobody."""
    waits: list[float] = []
    running: set[asyncio.Task[None]] = set()

    async def one(cycle: Cycle) -> None:
        for command in cycle.commands():
            sent = time.perf_counter()
            await writer.run(command)
            waits.append((time.perf_counter() - sent) * 1000)

    began = time.perf_counter()
    for number in itertools.count():
        due = began + number / rate
        if due > began + seconds:
            break
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(one(next_cycle()))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return waits


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# --- the figures -----------------------------------------------------------------------------------------------------


def spread_and_hot(dsn: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """The spread load and one hot account, in turns, so that what else the machine does falls on both."""
    found: dict[str, list[float]] = {"spread": [], "hot": []}
    writer = open_writer(dsn)
    spread, hot = Traffic(1), Traffic(2, accounts=1)

    async def run() -> None:
        await fund(writer, ACCOUNTS)
        await closed_loop(writer, spread.cycle, CLIENTS, seconds / 2)
        for _ in range(rounds):
            found["spread"].append(await closed_loop(writer, spread.cycle, CLIENTS, seconds))
            found["hot"].append(await closed_loop(writer, hot.cycle, CLIENTS, seconds))

    try:
        asyncio.run(run())
    finally:
        writer.stop()
    return found


def one_writer(dsn: str, seed: int, clients: int, seconds: float) -> float:
    """Run by a process of its own: the cycles per second that its writer made, once its cache was warm."""
    writer, traffic = open_writer(dsn), Traffic(seed)

    async def run() -> float:
        await closed_loop(writer, traffic.cycle, clients, WARM_UP_SECONDS)
        return await closed_loop(writer, traffic.cycle, clients, seconds)

    try:
        return asyncio.run(run())
    finally:
        writer.stop()


def writers_apart(dsn: str, writers: int, seconds: float, rounds: int) -> list[float]:
    """Cycles per second of so many writer processes together, on the same load in all."""
    context = multiprocessing.get_context("spawn")
    sums = []
    with context.Pool(writers) as pool:
        for number in range(rounds):
            jobs = [(dsn, 100 * number + seed + 10, CLIENTS // writers, seconds) for seed in range(writers)]
            sums.append(sum(pool.starmap(one_writer, jobs)))
    return sums


def commit_waits(dsn: str, rate: float, seconds: float, *, vacuum: str | None = None) -> list[float]:
    """Waits at a fixed rate; ``vacuum`` is the cost delay of one that runs beside it all the time."""
    writer, traffic = open_writer(dsn), Traffic(3)
    stop = threading.Event()

    async def run() -> list[float]:
        await closed_loop(writer, traffic.cycle, CLIENTS, WARM_UP_SECONDS)
        return await open_loop(writer, traffic.cycle, rate, seconds)

    def keep_vacuuming() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT set_config('vacuum_cost_delay', %s, false)", (vacuum,))
            while not stop.is_set():
                connection.execute("VACUUM (ANALYZE) events")
                connection.execute("VACUUM (ANALYZE) wallet_balances")

    beside = threading.Thread(target=keep_vacuuming)
    if vacuum:
        beside.start()
    try:
        return asyncio.run(run())
    finally:
        stop.set()
        if vacuum:
            beside.join()
        writer.stop()


def stock_cycles(dsn: str, seconds: float, threads: int = 8) -> float:
    """The same commands over the library's own event store and recorder, one save a command."""
    stock = StockLedger(dsn, cache_max=2 * ACCOUNTS)
    traffic = Traffic(4)
    lock = threading.Lock()
    until = 0.0
    done = itertools.count()

    def work() -> None:
        while time.perf_counter() < until:
            with lock:
                cycle = traffic.cycle()
            for command in cycle.commands():
                stock.execute(command)
            next(done)

    try:
        for part in _batched(grants(ACCOUNTS), 25):
            stock.execute_together(part)
        began = time.perf_counter()
        until = began + seconds
        with ThreadPoolExecutor(threads) as pool:
            for job in [pool.submit(work) for _ in range(threads)]:
                job.result()
        return next(done) / (time.perf_counter() - began)
    finally:
        stock.close()


def copy_events(dsn: str, rows: int, rounds: int) -> list[float]:
    """Events per second of a binary COPY of what the writer wrote, into a table with the same indexes."""
    found = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        stored = connection.execute(
            "SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events"
            " ORDER BY position DESC LIMIT %s",
            (rows,),
            binary=True,
        ).fetchall()
        for _ in range(rounds):
            connection.execute("CREATE TABLE copied (LIKE events INCLUDING ALL)")
            began = time.perf_counter()
            for part in _batched(stored, COPY_BATCH_ROWS):
                with connection.cursor().copy("COPY copied FROM STDIN (FORMAT BINARY)") as copy:
                    copy.set_types(["int8", "uuid", "int4", "text", "timestamptz", "bytea"])
                    for row in part:
                        copy.write_row(row)
            found.append(len(stored) / (time.perf_counter() - began))
            connection.execute("DROP TABLE copied")
    return found


def measure(server_dsn: str, seconds: float, rounds: int) -> dict[str, float]:
    with scratch_database(server_dsn) as dsn:
        found = spread_and_hot(dsn, seconds, rounds)
        spread = statistics.median(found["spread"])
        two = statistics.median(writers_apart(dsn, 2, seconds, rounds))
        one = statistics.median(writers_apart(dsn, 1, seconds, rounds))
        quiet = commit_waits(dsn, spread / 2, seconds)
        vacuumed = commit_waits(dsn, spread / 2, seconds, vacuum=AUTOVACUUM_COST_DELAY)
        rushed = commit_waits(dsn, spread / 2, seconds, vacuum="0")
        copied = statistics.median(copy_events(dsn, 100_000, rounds))
    with scratch_database(server_dsn) as dsn:
        stock = stock_cycles(dsn, seconds)
    hot = statistics.median(found["hot"])
    return {
        "money_cycles_per_second": round(spread),
        "stock_cycles_per_second": round(stock, 1),
        "events_per_second": round(spread * EVENTS_A_CYCLE),
        "copy_events_per_second": round(copied),
        "hot_account_cycles_per_second": round(hot),
        "one_writer_cycles_per_second": round(one),
        "two_writer_cycles_per_second": round(two),
        "commit_p50_ms": round(percentile(quiet, 0.5), 2),
        "commit_p99_ms": round(percentile(quiet, 0.99), 2),
        "commit_p99_beside_vacuum_ms": round(percentile(vacuumed, 0.99), 2),
        "commit_p99_beside_unthrottled_vacuum_ms": round(percentile(rushed, 0.99), 2),
        "cycles_to_stock": round(spread / stock, 1),
        "events_to_copy": round(spread * EVENTS_A_CYCLE / copied, 3),
        "hot_to_spread": round(hot / spread, 2),
        "two_writers_to_one": round(two / one, 2),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each round of each load runs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    options = parser.parse_args()
    logging.getLogger("adapters.postgres").setLevel(logging.ERROR)
    with server(options.database_url) as dsn:
        show(measure(dsn, options.seconds, options.rounds), as_json=options.json)


if __name__ == "__main__":
    main()
