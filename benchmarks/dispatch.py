"""How fast work gets to machines: a request's way from its admission to a socket, jobs a second, heartbeats.

``embedded_…`` is one process, ``rabbitmq_…`` three: gateway, scheduler and projections, with RabbitMQ between them.
Each is the time from the admission of a request, through broker, scheduler, decision, claim and the durable dispatch,
until the sealed request is handed to the machine's socket: the steps ``route_us`` and ``encrypt_us`` that each answer
tells in its header. Beside them stand round trips of empty messages through Dramatiq, on the same broker, with the same
options, in the same run.

``jobs_per_second_…`` is how many jobs schedulers in processes of their own take from a full queue, claim, make durable
and tell the gateway of. ``heartbeat_core_share_N`` is the processor time that two gateways with N machines between them
take in a second, while the machines send heartbeats as often as the protocol says; a tenth of the machines say
something new each time. Figures that need RabbitMQ are null without it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import secrets
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import uvloop

from adapters.postgres.pool import make_async_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.actors import message_of
from adapters.scheduler.brokers import make_broker
from adapters.scheduler.gateway_fleet import GatewayFleet
from adapters.scheduler.leases import GatewayLease
from api.demo import Process
from benchmarks.brokers import round_trips_ms, scratch_vhost
from benchmarks.cycles import QUOTE
from benchmarks.databases import arguments, scratch_database, server, show
from benchmarks.fake_machines import MODEL
from benchmarks.notices import NoticeCounter
from benchmarks.processes import cpu_seconds, darkbloomd_output, start, url_of
from benchmarks.routing import machine
from benchmarks.yardsticks import yardsticks
from domain.dispatch import DispatchJob
from domain.ledger import Admit, GrantCredit
from projections.balances import Balances
from projections.open_requests import OpenRequests
from projections.usage import UsageEntries

BROKER_URL = "amqp://guest:guest@127.0.0.1:5672/"
PARTS = ("embedded", "rabbitmq", "jobs", "heartbeats")
JOB_FIGURES = ("jobs_per_second_1_worker", "jobs_per_second_2_workers")
JOB_MACHINES = 200
ADMITTED_AT_ONCE = 256
NOTICES_SECONDS_MAX = 300.0
CONNECTED_SECONDS_MAX = 1_800.0


class Deployment:
    """Processes on one database and, unless it is a single process, on one RabbitMQ."""

    def __init__(self, stack: ExitStack, folder: Path, dsn: str, broker_url: str = "") -> None:
        self.dsn, self.broker_url, self.secret = dsn, broker_url, secrets.token_hex(16)
        self._stack, self._folder = stack, folder

    def start(self, name: str, *words: str) -> Process:
        environment = {"DARKBLOOM_DATABASE_URL": self.dsn}
        if self.broker_url:
            environment |= {"DARKBLOOM_BROKER_URL": self.broker_url, "DARKBLOOM_INTERNAL_SECRET": self.secret}
        return start(self._stack, self._folder, name, "api.cli", *words, **environment)

    def gateway(self, name: str, command: str = "serve") -> tuple[Process, str]:
        process = self.start(
            name, command, "--port", "0", *(("--data-dir", str(self._folder)) if command == "up" else ())
        )
        return process, url_of(process)

    def machines(self, *urls: str, count: int = 1) -> None:
        """Returns when they are routable."""
        words = ("benchmarks.fake_machines", *urls, "--machines", str(count))
        start(self._stack, self._folder, f"machines-{count}", *words).first_line(CONNECTED_SECONDS_MAX)


# --- from admission to the socket ------------------------------------------------------------------------------------


def _ways_ms(deployment: Deployment, url: str, requests: int) -> list[float]:
    """One request after the other."""
    key = darkbloomd_output(deployment.dsn, "keys", "create", "--credit", "100")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    took = []
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60.0) as client:
        for _ in range(requests + 20):
            answer = client.post(url + "/v1/chat/completions", json=body).raise_for_status()
            timing = json.loads(answer.headers["X-Timing"])
            took.append((timing["route_us"] + timing["encrypt_us"]) / 1000)
    return took[20:]


def _embedded(folder: Path, server_dsn: str, requests: int) -> dict[str, float]:
    with ExitStack() as stack:
        deployment = Deployment(stack, folder, stack.enter_context(scratch_database(server_dsn)))
        _, url = deployment.gateway("embedded", "up")
        deployment.machines(url)
        bare = uvloop.run(round_trips_ms(make_broker(""), requests, answers_here=True))
        return _percentiles("bare_embedded", bare) | _percentiles("embedded", _ways_ms(deployment, url, requests))


def _across_processes(folder: Path, server_dsn: str, broker_url: str, requests: int) -> dict[str, float]:
    with ExitStack() as stack:
        start(stack, folder, "echo", "benchmarks.brokers", broker_url).first_line()
        bare = uvloop.run(round_trips_ms(make_broker(broker_url), requests, answers_here=False))
    with ExitStack() as stack:
        deployment = Deployment(stack, folder, stack.enter_context(scratch_database(server_dsn)), broker_url)
        deployment.start("schedule", "schedule").first_line()
        deployment.start("project", "project").first_line()
        _, url = deployment.gateway("serve")
        deployment.machines(url)
        return _percentiles("bare_rabbitmq", bare) | _percentiles("rabbitmq", _ways_ms(deployment, url, requests))


def _percentiles(name: str, took: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return {f"{name}_p50_ms": round(cuts[49], 3), f"{name}_p99_ms": round(cuts[98], 3)}


# --- jobs a second ---------------------------------------------------------------------------------------------------


def _jobs_per_second(folder: Path, server_dsn: str, broker_url: str, workers: int, jobs: int) -> float:
    with ExitStack() as stack:
        dsn = stack.enter_context(scratch_database(server_dsn))
        return uvloop.run(_take_jobs(Deployment(stack, folder, dsn, broker_url), workers, jobs))


async def _take_jobs(deployment: Deployment, workers: int, jobs: int) -> float:
    """This process stands for the gateway: it admits, announces machines, queues, and counts what it is told."""
    counter, gateway_id = NoticeCounter(), uuid4()
    async with counter.listening() as url, make_async_pool(deployment.dsn, size_max=2) as pool:
        await _hold_a_lease(pool, url, gateway_id)
        fleet = GatewayFleet(pool, lambda: gateway_id, size_of=lambda _: 8.0)
        for _ in range(JOB_MACHINES):
            fleet.note(machine(gateway_id, model=MODEL, capacity=64), routable=True)
        await fleet.flush()
        admitted = await _admit(deployment.dsn, gateway_id, jobs)
        broker = make_broker(deployment.broker_url)
        for job in admitted:
            broker.enqueue(message_of(job))
        broker.close()
        for number in range(workers):
            deployment.start(f"worker-{workers}-{number}", "schedule")
        async with asyncio.timeout(NOTICES_SECONDS_MAX):
            await counter.reached(jobs)
    return counter.per_second()


async def _hold_a_lease(pool: Any, url: str, gateway_id: UUID) -> None:
    async def renamed() -> None:
        raise AssertionError("the lease outlasts the benchmark")

    lease = GatewayLease(pool, url, seconds=3_600, renew_seconds=600, on_lost=lambda: None, on_renamed=renamed)
    await lease.take(gateway_id)


async def _admit(dsn: str, gateway_id: UUID, jobs: int) -> list[DispatchJob]:
    writer = LedgerWriter(dsn, [Balances(), UsageEntries(), OpenRequests()])
    writer.start()
    try:
        await writer.run(GrantCredit(account_id="account", amount_micro_usd=10**12, reference="benchmark"))
        made = [
            DispatchJob(
                request_id=uuid4(),
                attempt=1,
                account_id="account",
                model=MODEL,
                size_gb=8.0,
                prompt_tokens=100,
                output_tokens=200,
                reply_to=gateway_id,
                deadline=time.time() + 3_600,
            )
            for _ in range(jobs)
        ]
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        for start_at in range(0, jobs, ADMITTED_AT_ONCE):
            some = made[start_at : start_at + ADMITTED_AT_ONCE]
            await asyncio.gather(*(writer.run(_admission(job, expires_at)) for job in some))
    finally:
        writer.stop()
    return made


def _admission(job: DispatchJob, expires_at: datetime) -> Admit:
    return Admit(
        request_id=job.request_id,
        account_id=job.account_id,
        key_id="key",
        gateway_id=str(job.reply_to),
        model=job.model,
        prompt_estimate=job.prompt_tokens,
        prompt_bound=job.prompt_tokens,
        output_bound=job.output_tokens,
        quote=QUOTE,
        expires_at=expires_at,
    )


# --- heartbeats ------------------------------------------------------------------------------------------------------


def _heartbeat_core_share(folder: Path, server_dsn: str, broker_url: str, machines: int, seconds: float) -> float:
    with ExitStack() as stack:
        deployment = Deployment(stack, folder, stack.enter_context(scratch_database(server_dsn)), broker_url)
        deployment.start("schedule-heartbeats", "schedule").first_line()
        gateways, urls = zip(*(deployment.gateway(f"gateway-{number}") for number in range(2)), strict=True)
        deployment.machines(*urls, count=machines)
        began, cpu_began = time.perf_counter(), cpu_seconds(*gateways)
        time.sleep(seconds)
        return (cpu_seconds(*gateways) - cpu_began) / (time.perf_counter() - began)


def _measure(options: argparse.Namespace, folder: Path, server_dsn: str) -> dict[str, float | None]:
    with scratch_database(server_dsn) as dsn:
        figures: dict[str, float | None] = {**yardsticks(dsn)}
    if "embedded" in options.parts:
        figures |= _embedded(folder, server_dsn, options.requests)
    with scratch_vhost(options.broker_url) as broker_url:
        if broker_url is None:
            sys.stderr.write(f"no RabbitMQ answers at {options.broker_url.rpartition('@')[2]}\n")
            return figures | dict.fromkeys(_needs_rabbitmq(options))
        if "rabbitmq" in options.parts:
            figures |= _across_processes(folder, server_dsn, broker_url, options.requests)
        if "jobs" in options.parts:
            for workers, name in enumerate(JOB_FIGURES, start=1):
                figures[name] = round(_jobs_per_second(folder, server_dsn, broker_url, workers, options.jobs))
        if "heartbeats" in options.parts:
            seconds = options.heartbeat_seconds
            share = _heartbeat_core_share(folder, server_dsn, broker_url, options.machines, seconds)
            figures[f"heartbeat_core_share_{options.machines}"] = round(share, 3)
    return figures


def _needs_rabbitmq(options: argparse.Namespace) -> list[str]:
    names = {
        "rabbitmq": [f"{way}_p{percent}_ms" for way in ("bare_rabbitmq", "rabbitmq") for percent in (50, 99)],
        "jobs": list(JOB_FIGURES),
        "heartbeats": [f"heartbeat_core_share_{options.machines}"],
    }
    return [name for part in options.parts for name in names.get(part, ())]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--broker-url", default=BROKER_URL)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=4_000)
    parser.add_argument("--machines", type=int, default=10_000)
    parser.add_argument("--heartbeat-seconds", type=float, default=60.0, help="how long heartbeats are measured")
    options = parser.parse_args()
    gc.disable()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="darkbloom-bench-") as name, server(options.database_url) as server_dsn:
        show(_measure(options, Path(name), server_dsn), as_json=options.json)


if __name__ == "__main__":
    main()
