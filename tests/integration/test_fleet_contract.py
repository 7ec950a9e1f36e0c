"""The tables in memory answer as PostgreSQL does: the same operations on both, and the same answers and rows.

A random course of the market's own operations runs on both sides by side. What is compared is what the adapters return,
and every row that is left, with ages in place of times.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from random import Random
from typing import Any, NamedTuple, Protocol, cast
from uuid import UUID

import msgspec
import psycopg
import pytest

from adapters.postgres import sql
from adapters.postgres.pool import make_async_pool, open_pool
from adapters.scheduler.fleet import AttemptHasSlot, SchedulerFleet, slots_in
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import DispatchJob
from domain.routing import ANY_MACHINE, Constraints, Demand, Observation, Policy, SlotState
from tests.simulation.pools import AsyncMemoryPool, MemoryPool
from tests.simulation.tables import Lease, OpenRequest, Tables
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import job, machine

pytest_plugins = ["tests.support.ledger_fixtures"]

OTHER_GATEWAY = UUID("9d0c7a3e-0000-4000-8000-000000000002")
OTHER_MODEL = "acme/large-8bit"
POLICY = Policy(breaker_failures=2, breaker_seconds=30.0)
STEPS = 250

_AGED = {
    "fleet": ("updated_at",),
    "claims": ("claimed_at", "expires_at"),
    "waiters": ("enqueued_at", "deadline", "woken_at"),
    "gateways": ("lease_until",),
    "open_requests": ("admitted_at", "expires_at"),
}
"""The times that move when the world gets older."""


class Side(Protocol):
    """One of the two: the adapters over it, and a way to look and to let time pass."""

    scheduler: SchedulerFleet
    gateway: GatewayFleet

    def statement(self, text: str, parameters: Any) -> list[tuple[Any, ...]]: ...

    def admit(self, one: DispatchJob) -> None: ...

    def end(self, request_id: UUID) -> None: ...

    def lease(self, gateway_id: UUID, seconds: float) -> None: ...

    def age(self, seconds: float) -> None: ...

    def truncate(self) -> None: ...

    def rows(self) -> dict[str, set[tuple[Any, ...]]]: ...


class MemorySide:
    def __init__(self) -> None:
        self._older = 0.0
        self._tables = Tables(lambda: time.time() + self._older)
        self.scheduler = SchedulerFleet(cast("Any", MemoryPool(self._tables)))
        self.gateway = _gateway(AsyncMemoryPool(self._tables))

    def statement(self, text: str, parameters: Any) -> list[tuple[Any, ...]]:
        return self._tables.execute(text, parameters)

    def admit(self, one: DispatchJob) -> None:
        now = time.time() + self._older
        self._tables.open_requests[one.request_id] = OpenRequest(
            one.account_id, str(one.reply_to), one.model, now, now + 3_600
        )

    def end(self, request_id: UUID) -> None:
        self._tables.open_requests.pop(request_id, None)

    def lease(self, gateway_id: UUID, seconds: float) -> None:
        self._tables.gateways[str(gateway_id)] = Lease("http://gateway", time.time() + self._older + seconds)

    def age(self, seconds: float) -> None:
        self._older += seconds
        for offer in self._tables.offers.values():
            offer.put_aside_until += seconds  # which health decides by the clock of gateways, and that stands still
        self._tables._last_enqueued_at = 0.0

    def truncate(self) -> None:
        self._tables.truncate()

    def rows(self) -> dict[str, set[tuple[Any, ...]]]:
        tables = self._tables
        return {
            "fleet": {
                (one.session_id, one.gateway_id, one.capacity, one.routable, one.busy) for one in tables.fleet.values()
            },
            "offers": {
                (
                    *key,
                    one.gateway_id,
                    one.trust,
                    one.routable,
                    one.capacity,
                    one.busy,
                    one.requests_model,
                    one.output_tokens_model,
                    round(one.rank.usual_ms),
                    one.put_aside_until > time.time() + self._older,
                )
                for key, one in tables.offers.items()
            },
            "claims": {(*key, one.session_id, one.model, one.output_tokens) for key, one in tables.claims.items()},
            "waiters": {(*key, one.turn, one.woken_at is not None) for key, one in tables.waiters.items()},
            "turns": {(model, wish.turn) for model, wish in tables.wishes.items()},
            "slot_seconds": {(model, wish.slot_seconds is None) for model, wish in tables.wishes.items()},
            "health": {(machine_id, one.health) for machine_id, one in tables.health.items()},
        }


class PostgresSide:
    def __init__(self, look: psycopg.Connection[Any], pool: Any, async_pool: Any) -> None:
        self._look = look
        self.scheduler = SchedulerFleet(pool)
        self.gateway = _gateway(async_pool)

    def statement(self, text: str, parameters: Any) -> list[tuple[Any, ...]]:
        cursor = self._look.execute(text, parameters)
        return cursor.fetchall() if cursor.description else []

    def admit(self, one: DispatchJob) -> None:
        self._look.execute(
            "INSERT INTO open_requests (request_id, account_id, gateway_id, model, reserved_micro_usd, admitted_at, "
            "expires_at) VALUES (%s, %s, %s, %s, 1, now(), now() + interval '1 hour') ON CONFLICT DO NOTHING",
            (one.request_id, one.account_id, one.reply_to, one.model),
        )

    def end(self, request_id: UUID) -> None:
        self._look.execute("DELETE FROM open_requests WHERE request_id = %s", (request_id,))

    def lease(self, gateway_id: UUID, seconds: float) -> None:
        self._look.execute(
            "INSERT INTO gateways VALUES (%s, 'http://gateway', now() + make_interval(secs => %s)) "
            "ON CONFLICT (gateway_id) DO UPDATE SET lease_until = excluded.lease_until",
            (gateway_id, seconds),
        )

    def age(self, seconds: float) -> None:
        for table, columns in _AGED.items():
            moved = ", ".join(f"{column} = {column} - make_interval(secs => {seconds})" for column in columns)
            self._look.execute(f"UPDATE {table} SET {moved}")

    def truncate(self) -> None:
        self._look.execute("TRUNCATE fleet, fleet_models, claims, waiters, model_demand")

    def rows(self) -> dict[str, set[tuple[Any, ...]]]:
        def every(query: str) -> set[tuple[Any, ...]]:
            return set(self._look.execute(query).fetchall())

        return {
            "fleet": every("SELECT session_id::text, gateway_id::text, capacity, routable, busy FROM fleet"),
            "offers": every(
                "SELECT session_id::text, model, gateway_id::text, trust, routable, capacity, busy, requests_model, "
                "output_tokens_model, round(usual_ms)::int, put_aside_until > now() FROM fleet_models"
            ),
            "claims": every("SELECT request_id, attempt, session_id::text, model, output_tokens FROM claims"),
            "waiters": every("SELECT request_id, attempt, turn, woken_at IS NOT NULL FROM waiters"),
            "turns": every("SELECT model, turn FROM model_demand"),
            "slot_seconds": every("SELECT model, slot_seconds IS NULL FROM model_demand"),
            "health": every("SELECT machine_id, health FROM machine_health"),
        }


def _gateway(pool: Any) -> GatewayFleet:
    return GatewayFleet(pool, lambda: GATEWAY, policy=POLICY, size_of=lambda _: 1.0)


@pytest.fixture
async def sides(ledger: str, look: psycopg.Connection[Any]) -> AsyncGenerator[tuple[Side, Side], None]:
    with open_pool(ledger, size_max=1) as pool:
        async with make_async_pool(ledger, size_max=1) as async_pool:
            yield MemorySide(), PostgresSide(look, pool, async_pool)


class World(NamedTuple):
    """What exists on both sides alike."""

    chance: Random
    machines: list[Any]
    jobs: list[DispatchJob]


def _uuid(chance: Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)


def _machine(world: World) -> Any:
    chance = world.chance
    return machine(
        session_id=str(_uuid(chance)),
        machine_id=f"{chance.randrange(8):064x}",
        gateway_id=chance.choice((GATEWAY, GATEWAY, OTHER_GATEWAY)),
        capacity=chance.randint(1, 3),
        models=chance.choice(((MODEL,), (MODEL, OTHER_MODEL))),
        trust_level=chance.choice(("none", "hardware")),
        private_only=chance.random() < 0.2,
        slots=chance.choice(({}, {MODEL: SlotState("running", max_concurrency=1)})),
        account_id=chance.choice(("", "acct-owner")),
        serial=chance.choice(("", "SERIAL-1")),
        decode_tps=chance.choice((30.0, 100.0)),
    )


async def meet_and_announce(side: Side, world: World) -> Any:
    if len(world.machines) < 8 or world.chance.random() < 0.2:
        world.machines.append(_machine(world))
    one = world.chance.choice(world.machines)
    await side.gateway.meet(one)
    withheld = world.chance.sample(sorted(one.models), world.chance.randint(0, 1))
    return ids(await side.gateway.announce(one, routable=world.chance.random() < 0.85, withheld=withheld))


async def note_and_flush(side: Side, world: World) -> Any:
    for one in world.chance.sample(world.machines, min(3, len(world.machines))):
        busier = msgspec.structs.replace(one, memory_pressure=world.chance.random())
        side.gateway.note(busier, routable=True)
    flushed = await side.gateway.flush()
    return sorted(ids(flushed.woken)), sorted(flushed.changed)


async def observe(side: Side, world: World) -> Any:
    at = round(time.time()) + 5.0  # the same on both sides
    one = world.chance.choice(world.machines) if world.machines else _machine(world)
    for _ in range(world.chance.randint(1, 3)):
        kind = world.chance.choice(("job_failed", "job_failed", "job_done", "challenge_passed"))
        side.gateway.observe(one.machine_id, Observation(kind, at - at % 1_000_000 + 2_000_000, 100.0))
    return sorted((await side.gateway.flush()).changed)


async def withdraw(side: Side, world: World) -> Any:
    if world.machines and world.chance.random() < 0.3:
        await side.gateway.withdraw(world.machines.pop(world.chance.randrange(len(world.machines))).session_id)


async def ask(side: Side, world: World) -> Any:
    one = job(
        _uuid(world.chance),
        attempt=world.chance.choice((1, 1, 2)),
        account_id=f"acct-{world.chance.randrange(3)}",
        model=world.chance.choice((MODEL, MODEL, OTHER_MODEL)),
        output_tokens=world.chance.randint(1, 500),
        constraints=world.chance.choice((ANY_MACHINE, ANY_MACHINE, Constraints(only_account="acct-owner"))),
        reply_to=world.chance.choice((GATEWAY, OTHER_GATEWAY)),
        deadline=0.0,
    )
    world.jobs.append(one)
    if world.chance.random() < 0.9:
        side.admit(one)
    side.scheduler.note_demand(one.model)


async def claim(side: Side, world: World) -> Any:
    one, target = _job(world), world.chance.choice(world.machines) if world.machines else _machine(world)
    try:
        return side.scheduler.claim(one, target.session_id, seconds=40.0, alone=world.chance.random() < 0.2)
    except AttemptHasSlot:
        return "has a slot"


async def release(side: Side, world: World) -> Any:
    one = _job(world)
    if world.chance.random() < 0.5:
        freed = side.scheduler.release(one.request_id, one.attempt)
        return ids(side.scheduler.wake_for(freed, POLICY, world.chance.choice((None, GATEWAY))))
    return ids(await side.gateway.release(one.request_id, one.attempt))


async def release_several(side: Side, world: World) -> Any:
    leaving = [(one.request_id, one.attempt) for one in world.chance.sample(world.jobs, min(4, len(world.jobs)))]
    freed = side.statement(sql.RELEASE_CLAIMS, slots_in([*leaving, *leaving[:1]]))
    return sorted((model, sorted(map(str, sessions)), sorted(models)) for model, _, sessions, models in freed)


async def park(side: Side, world: World) -> Any:
    place = side.scheduler.park(_job(world), seconds=world.chance.choice((20.0, 90.0)), depth_max=6)
    return place and (place.position, place.taken_now, ids([place.shed] if place.shed else []))


async def wake(side: Side, world: World) -> Any:
    return ids(side.scheduler.wake([MODEL, OTHER_MODEL], world.chance.randint(1, 3)))


async def leave(side: Side, world: World) -> Any:
    side.scheduler.leave_queue(_job(world).request_id)


async def end(side: Side, world: World) -> Any:
    side.end(_job(world).request_id)


async def sweep(side: Side, world: World) -> Any:
    return sorted(ids(side.scheduler.sweep()))


async def look_around(side: Side, world: World) -> Any:
    one, gateway_id = _job(world), world.chance.choice((None, GATEWAY))
    asked = Constraints(
        minimum_trust=world.chance.choice(("none", "hardware")),
        allowed=world.chance.choice(((), (f"{1:064x}", "SERIAL-1"))),
        only_account=world.chance.choice(("", "acct-owner")),
        preferred_account=world.chance.choice(("", "acct-owner")),
    )
    demand = Demand(one.model, 10, world.chance.choice((20, 3_000)), size_gb=1.0, constraints=asked)
    policy = msgspec.structs.replace(POLICY, minimum_trust=world.chance.choice(("none", "hardware")))
    cheapest = side.scheduler.cheapest(demand, policy, gateway_id)
    everybody = side.scheduler.machines_for(
        one.model, gateway_id, own_account=asked.own_account, account_id=asked.only_account, allowed=asked.allowed
    )
    supply = side.scheduler.supply(demand, policy, gateway_id)
    offers = await side.gateway.offers(world.chance.choice((None, one.model)), own_account=asked.own_account)
    return (
        sorted(_seen(candidate) for candidate in cheapest.candidates),
        cheapest.complete,
        sorted(_seen(candidate) for candidate in everybody),
        supply[:3],
        sorted(snapshot.session_id for snapshot in offers),
        side.scheduler.claimed_session(one.request_id, one.attempt),
        side.scheduler.has_room_to_spare(one.model),
        side.scheduler.anybody_waits(one.model),
        await side.gateway.is_idle(one.model),
    )


async def abandon(side: Side, world: World) -> Any:
    found = side.statement(sql.ABANDONED_REQUESTS, (30.0, 1_000))
    side.statement(sql.DROP_ENDED_GATEWAYS, None)
    return sorted(row[0] for row in found)


async def change_leases(side: Side, world: World) -> Any:
    gateway_id = world.chance.choice((GATEWAY, OTHER_GATEWAY))
    if world.chance.random() < 0.5:
        side.lease(gateway_id, 300.0)
    elif world.chance.random() < 0.2:
        side.statement(sql.END_LEASE, (gateway_id,))
    renewed = side.statement(sql.RENEW_LEASE, (60.0, gateway_id))
    return bool(renewed), len(side.statement(sql.GATEWAY_URL, (gateway_id,)))


async def grow_older(side: Side, world: World) -> Any:
    side.age(world.chance.choice((2.0, 7.0, 15.0, 70.0)))


async def lose_the_tables(side: Side, world: World) -> Any:
    if world.chance.random() < 0.2:
        side.truncate()


Operation = Callable[[Side, World], Any]

OPERATIONS: tuple[tuple[Operation, int], ...] = (
    (meet_and_announce, 6),
    (note_and_flush, 2),
    (observe, 1),
    (withdraw, 1),
    (ask, 8),
    (claim, 8),
    (release, 5),
    (release_several, 1),
    (park, 8),
    (wake, 3),
    (leave, 1),
    (end, 2),
    (sweep, 2),
    (look_around, 4),
    (abandon, 1),
    (change_leases, 2),
    (grow_older, 2),
    (lose_the_tables, 1),
)


def _job(world: World) -> DispatchJob:
    return world.chance.choice(world.jobs[-12:]) if world.jobs else job(UUID(int=7), deadline=0.0)


def ids(jobs: list[DispatchJob]) -> list[str]:
    return [str(one.request_id) for one in jobs]


def _seen(candidate: Any) -> tuple[Any, ...]:
    return candidate.snapshot.session_id, candidate.load, candidate.health.jobs_failed


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_memory_and_postgresql_say_the_same(sides: tuple[Side, Side], seed: int) -> None:
    worlds = [World(Random(seed), [], []) for _ in sides]
    for side in sides:
        side.lease(GATEWAY, 300.0)
        side.lease(OTHER_GATEWAY, 300.0)
    plan = Random(f"plan {seed}")
    operations, weights = zip(*OPERATIONS, strict=True)
    for step in range(STEPS):
        operation = plan.choices(operations, weights)[0]
        in_memory, in_postgresql = [await operation(side, world) for side, world in zip(sides, worlds, strict=True)]
        assert in_memory == in_postgresql, f"step {step}: {operation.__name__}"
        memory, postgresql = sides[0].rows(), sides[1].rows()
        for table, rows in memory.items():
            assert rows == postgresql[table], f"step {step}: {operation.__name__} leaves another {table}"
