"""How long a decision takes, by the size of the fleet, and what the index costs against looking at every machine.

A decision is what a scheduler does for each attempt: ask the index for the first machines, read them, price them, and
choose. It does not include the claim. Half of the decisions are made cold, on a fleet that was only just announced and
over connections that never asked before; half after churn, when every machine has announced itself again with other
numbers and slots were claimed and given back at random.

``cost_regret_percent`` compares the cheapest machine of the index with the cheapest of the whole fleet, as a mean over
requests of many sizes; ``choice_regret_percent`` the chosen one with the one that a full scan chooses, which is below
zero when the index does better. Both are the worst of all sizes of the fleet.

Two yardsticks tell what the machine itself adds. ``cpu_…`` is the processor time of a decision in the scheduler's own
thread. ``round_trip_…`` is the time of an empty statement over the same connection after each decision: when it has a
long tail, other work takes the processors away, and the decision has that tail too.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import math
import secrets
import statistics
import time
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from adapters.postgres.pool import make_async_pool, open_pool
from adapters.scheduler.decision import Decision
from adapters.scheduler.fleet import SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from benchmarks.databases import arguments, scratch_database, server, show
from domain.dispatch import DispatchJob
from domain.routing import Candidate, Demand, Load, Policy, SlotState, Snapshot, choose, cost_of, reasons_against

MODEL, OTHER_MODEL, SIZE_GB = "asked-for", "another", 8.0
POLICY = Policy(development=True, minimum_trust="none")
CHIPS = ((68, 12), (100, 18), (150, 28), (200, 35), (273, 45), (300, 50), (400, 65), (546, 85), (800, 110))
"""Memory bandwidth in GB/s and tokens a second of the machines that exist."""


RANDOM = Random(2_026)


class Took(NamedTuple):
    """Milliseconds of one decision, of its processor time, and of an empty round trip to the database after it."""

    decision: float
    cpu: float
    round_trip: float


class Fleet(NamedTuple):
    gateway_id: UUID
    gateway: GatewayFleet
    scheduler: SchedulerFleet
    machines: dict[str, Snapshot]


def machine(
    gateway_id: UUID, random: Random = RANDOM, session_id: str = "", *, model: str = MODEL, capacity: int = 0
) -> Snapshot:
    """A machine like those that exist; ``capacity`` 0 draws that too."""
    bandwidth_gbs, tps = random.choice(CHIPS)
    memory_gb = random.choice((16.0, 24.0, 36.0, 64.0, 128.0))
    running = random.choice((0, 0, 0, 1, 2, 3))
    slot = SlotState("running", running, 0, running * random.randint(64, 1_024))
    unloaded = random.random() < 0.2
    return Snapshot(
        session_id=session_id or str(uuid4()),
        machine_id=secrets.token_hex(32),
        gateway_id=str(gateway_id),
        account_id="",
        provider_key="key",
        trust_level="none",
        untrusted=False,
        draining=False,
        runtime_verified=False,
        private=True,
        challenge_passed_at=time.time() + 3_600,
        capacity=capacity or random.randint(2, 12),
        models={model: 8 * 2**30, OTHER_MODEL: 2**30} if random.random() < 0.5 else {model: 8 * 2**30},
        context_lengths={},
        slots={model: SlotState("idle_shutdown") if unloaded else slot},
        decode_tps=tps * random.uniform(0.85, 1.15),
        prefill_tps=0.0 if random.random() < 0.2 else tps * random.uniform(4.0, 8.0),
        memory_bandwidth_gbs=bandwidth_gbs,
        memory_pressure=random.random() * 0.7,
        cpu_usage=random.random(),
        thermal_state=random.choices(("nominal", "fair", "serious"), (85, 10, 5))[0],
        gpu_memory_active_gb=0.0 if unloaded else SIZE_GB,
        total_memory_gb=memory_gb,
        chip="",
        machine_model="",
        signing_key="",
        quantization={},
    )


def _demand(random: Random) -> Demand:
    prompt, output = int(10 ** random.uniform(1, 4)), int(10 ** random.uniform(1, 3.5))
    return Demand(MODEL, prompt, output, size_gb=SIZE_GB)


async def _announce(fleet: Fleet) -> None:
    for number, machine in enumerate(fleet.machines.values()):
        fleet.gateway.note(machine, routable=True)
        if number % 5_000 == 4_999:
            await fleet.gateway.flush()
    await fleet.gateway.flush()


def _claim_and_release(fleet: Fleet, random: Random, claims: int) -> None:
    """Fill some slots, and give half of them back."""
    sessions = list(fleet.machines)
    for number in range(claims):
        job = DispatchJob(
            request_id=uuid4(),
            attempt=1,
            account_id="account",
            model=MODEL,
            size_gb=SIZE_GB,
            prompt_tokens=100,
            output_tokens=random.randint(16, 2_048),
            reply_to=fleet.gateway_id,
            deadline=time.time() + 60,
        )
        fleet.scheduler.claim(job, random.choice(sessions), seconds=3_600)
        if number % 2:
            fleet.scheduler.release(job.request_id, 1)


def _decide(fleet: Fleet, dsn: str, random: Random, decisions: int) -> list[Took]:
    """What each decision took, over a connection that is new."""
    took = []
    gc.collect()
    gc.freeze()  # a scheduler does not hold the fleet that this process has made up
    with open_pool(dsn, size_max=1) as pool:
        pool.wait()
        decision = Decision(SchedulerFleet(pool), POLICY, random)
        for _ in range(decisions):
            demand = _demand(random)
            began, cpu_began = time.perf_counter(), time.thread_time()
            choice = decision.choose(demand, fleet.gateway_id)
            ended, cpu_ended = time.perf_counter(), time.thread_time()
            assert choice is not None
            with pool.connection() as connection:
                idle_began = time.perf_counter()
                connection.execute("SELECT 1", prepare=True).fetchall()
                round_trip = time.perf_counter() - idle_began
            took.append(Took(*(1000 * seconds for seconds in (ended - began, cpu_ended - cpu_began, round_trip))))
    return took


def _regrets(fleet: Fleet, dsn: str, random: Random, samples: int) -> tuple[float, float]:
    """Percent by which the cheapest of the index, and the choice among them, are dearer than those of all machines."""
    with psycopg.connect(dsn) as connection:
        loads = {
            str(row[0]): Load(*row[1:])
            for row in connection.execute(
                "SELECT session_id, busy, requests_model, output_tokens_model FROM fleet_models WHERE model = %s",
                (MODEL,),
            )
        }
    everybody = [Candidate(machine, loads[session]) for session, machine in fleet.machines.items()]
    decision = Decision(fleet.scheduler, POLICY, random)
    cheapest: list[float] = []
    chosen_ms = scanned_ms = 0.0
    for _ in range(samples):
        demand, now = _demand(random), time.time()
        of_index = fleet.scheduler.cheapest(demand, POLICY, fleet.gateway_id).candidates
        best, best_of_index = (_cheapest_ms(some, demand, now) for some in (everybody, of_index))
        cheapest.append(best_of_index / best - 1)
        choice = decision.choose(demand, fleet.gateway_id)
        scanned = choose(everybody, demand, POLICY, random, now=now)
        assert choice is not None
        assert scanned is not None
        chosen_ms, scanned_ms = chosen_ms + choice.cost.total_ms, scanned_ms + scanned.cost.total_ms
    return 100 * statistics.fmean(cheapest), 100 * (chosen_ms / scanned_ms - 1)


def _cheapest_ms(candidates: Sequence[Candidate], demand: Demand, now: float) -> float:
    return min(
        (
            cost_of(one, demand, POLICY).total_ms
            for one in candidates
            if not reasons_against(one, demand, POLICY, now=now)
        ),
        default=math.inf,
    )


async def _measure(dsn: str, machines: int, options: argparse.Namespace) -> dict[str, float]:
    random = Random(options.seed)
    gateway_id = uuid4()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE fleet, fleet_models, claims")
    with open_pool(dsn, size_max=1) as pool:
        async with make_async_pool(dsn, size_max=1) as gateway_pool:
            gateway = GatewayFleet(gateway_pool, lambda: gateway_id, policy=POLICY, size_of=lambda _: SIZE_GB)
            made = [machine(gateway_id, random) for _ in range(machines)]
            fleet = Fleet(gateway_id, gateway, SchedulerFleet(pool), {one.session_id: one for one in made})
            await _announce(fleet)
            cold = await asyncio.to_thread(_decide, fleet, dsn, random, options.decisions)
            for session in fleet.machines:
                fleet.machines[session] = machine(gateway_id, random, session)
            await _announce(fleet)
            await asyncio.to_thread(_claim_and_release, fleet, random, min(machines, options.churn))
            churned = await asyncio.to_thread(_decide, fleet, dsn, random, options.decisions)
            samples = max(10, min(200, options.scans // machines))
            regret, choice_regret = await asyncio.to_thread(_regrets, fleet, dsn, random, samples)
    report: dict[str, float] = {}
    for name, took in (
        ("decision", [one.decision for one in cold + churned]),
        ("cold", [one.decision for one in cold]),
        ("churn", [one.decision for one in churned]),
        ("cpu", [one.cpu for one in cold + churned]),
        ("round_trip", [one.round_trip for one in cold + churned]),
    ):
        report[f"{name}_p50_ms_{machines}"] = round(statistics.median(took), 3)
        report[f"{name}_p99_ms_{machines}"] = round(statistics.quantiles(took, n=100, method="inclusive")[98], 3)
    return report | {f"cost_regret_percent_{machines}": regret, f"choice_regret_percent_{machines}": choice_regret}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--machines", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--decisions", type=int, default=1_000, help="decisions cold, and as many after churn")
    parser.add_argument("--churn", type=int, default=10_000, help="claims between the two at most")
    parser.add_argument("--scans", type=int, default=2_000_000, help="machines that the full scans look at, in all")
    parser.add_argument("--seed", type=int, default=2_026)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    report: dict[str, Any] = {}
    with server(options.database_url) as server_dsn, scratch_database(server_dsn) as dsn:
        for machines in options.machines:
            report |= asyncio.run(_measure(dsn, machines, options))
    for name in ("cost_regret_percent", "choice_regret_percent"):
        report[name] = round(max(report.pop(f"{name}_{machines}") for machines in options.machines), 3)
    show(report, as_json=options.json)


if __name__ == "__main__":
    main()
