"""The fleet table as a gateway keeps it: the machines on its own sockets, and how they fare.

What must be known at once is written at once. The rest gathers and goes out in one statement a tick, so that ten
thousand heartbeats cost a few statements.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from adapters.scheduler.fleet import freed_in, slots_in
from adapters.scheduler.waking import Freed, health_in, waking
from domain.dispatch import DispatchJob
from domain.routing import (
    TRUST_RANK,
    Candidate,
    Health,
    Load,
    Observation,
    Policy,
    Rank,
    Snapshot,
    observe,
    rank_of,
)
from domain.routing.facts import NEUTRAL

TICK_SECONDS = 1.0

GIVE_BACK_SECONDS = 0.01
"""Slots that come free within this time of the last ones go together. Nobody waits for it while few requests come."""

ANNOUNCED_AT_ONCE_MAX = 1_000

_snapshot = msgspec.json.Decoder(Snapshot)


class Flushed(NamedTuple):
    """What a tick brought: requests that may find a slot now, machines that were put aside or let back, and sessions
    that the table does not know any more."""

    woken: list[DispatchJob]
    changed: list[str]
    missing: list[str]


class MachineRecord(NamedTuple):
    """A machine as it was last seen. ``snapshot`` is None while it is not connected; ``loads`` and
    ``asked_at`` (Unix seconds) are by model."""

    machine_id: str
    account_id: str
    chip: str
    machine_model: str
    models: tuple[str, ...]
    last_seen_at: float
    health: Health
    snapshot: Snapshot | None
    loads: dict[str, Load]
    asked_at: dict[str, float]


class _Announcement(NamedTuple):
    snapshot: Snapshot
    routable: bool
    withheld: Collection[str]

    def offers(self, model: str) -> bool:
        """Whether everybody may ask for it."""
        return self.routable and model not in self.withheld


class GatewayFleet:
    """``size_of`` gives a model's size in GiB, 0 or None when it is not known; ``relayed`` says that gateways carry
    requests for each other, so that what comes free here may serve a consumer of any."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        gateway_id: Callable[[], UUID],
        *,
        policy: Policy | None = None,
        size_of: Callable[[str], float | None] = lambda _: 0.0,
        relayed: bool = False,
    ) -> None:
        self._pool = pool
        self._gateway_id = gateway_id
        self._policy = policy or Policy()
        self._size_of = size_of
        self._relayed = relayed
        self._health: dict[str, Health] = {}
        self._noted: dict[str, _Announcement] = {}
        self._touched: set[str] = set()
        self._seen: defaultdict[str, list[Observation]] = defaultdict(list)
        self._slot_seconds: dict[str, float] = {}
        self._urgent = asyncio.Event()
        self._leaving: list[tuple[UUID, int]] = []
        self._writing = asyncio.Lock()
        """What is known of a machine is written in the order in which it came to be known."""
        self._giving_back = asyncio.Lock()
        self._gave_back_at = 0.0

    # --- machines ------------------------------------------------------------------------------------------------

    async def meet(self, snapshot: Snapshot) -> None:
        """A machine proved who it is: recall how it fared so far, and give no more work to its older connections."""
        async with connection_of(self._pool) as connection:
            cursor = await connection.execute(
                sql.MEET_MACHINE,
                {
                    "session_id": snapshot.session_id,
                    "machine_id": snapshot.machine_id,
                    "account_id": snapshot.account_id,
                    "chip": snapshot.chip,
                    "machine_model": snapshot.machine_model,
                    "models": list(snapshot.models),
                    "neutral": msgspec.json.encode(NEUTRAL),
                },
            )
            row = await cursor.fetchone()
        self._health[snapshot.machine_id] = health_in(row[0] if row else None)

    def health_of(self, machine_id: str) -> Health:
        return self._health.get(machine_id, NEUTRAL)

    async def announce(
        self, snapshot: Snapshot, *, routable: bool, withheld: Collection[str] = ()
    ) -> list[DispatchJob]:
        """Write a machine's state at once; returns requests that may now find a slot on it. ``withheld`` are models for
        which not everybody may ask it: its owner at most, when it is routable."""
        async with self._writing, connection_of(self._pool) as connection:
            self._noted.pop(snapshot.session_id, None)
            return await self._write(connection, [_Announcement(snapshot, routable, withheld)])

    def note(self, snapshot: Snapshot, *, routable: bool, withheld: Collection[str] = ()) -> None:
        """The same with the next tick."""
        self._noted[snapshot.session_id] = _Announcement(snapshot, routable, withheld)

    def touch(self, session_id: str) -> None:
        """A machine is there and nothing about it changed; also written with the next tick."""
        self._touched.add(session_id)

    async def withdraw(self, session_id: str) -> None:
        async with self._writing, connection_of(self._pool) as connection:
            self._noted.pop(session_id, None)
            self._touched.discard(session_id)
            await connection.execute(sql.WITHDRAW_MACHINE, {"session_id": session_id})

    def forget(self, machine_id: str) -> None:
        """No session of the machine is left here."""
        self._health.pop(machine_id, None)

    # --- how machines fare ---------------------------------------------------------------------------------------

    def observe(self, machine_id: str, seen: Observation) -> None:
        """Something happened on a machine. A failure is written at once, the rest with the next tick."""
        self._seen[machine_id].append(seen)
        if seen.kind == "job_failed":
            self._urgent.set()

    async def tick(self) -> None:
        """Wait for the next time to flush."""
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self._urgent.wait()
        except TimeoutError:
            pass
        self._urgent.clear()

    async def flush(self) -> Flushed:
        """Write what gathered.

        Raises:
            ServiceUnavailable: the database does not answer; what gathered is kept.
        """
        noted, seen, slot_seconds = list(self._noted.values()), dict(self._seen), dict(self._slot_seconds)
        touched = sorted(self._touched)
        if not (noted or touched or seen or slot_seconds):
            return Flushed([], [], [])
        freed: list[DispatchJob] = []
        known: set[str] = set()
        async with connection_of(self._pool) as connection:
            if slot_seconds:
                await connection.execute(sql.NOTE_SLOT_SECONDS, (list(slot_seconds), list(slot_seconds.values())))
                self._slot_seconds = {}
            changed = await self._write_health(connection, seen) if seen else []
            for machine_id, observations in seen.items():
                rest = self._seen[machine_id][len(observations) :]
                if rest:
                    self._seen[machine_id] = rest
                else:
                    del self._seen[machine_id]
            for start in range(0, len(noted), ANNOUNCED_AT_ONCE_MAX):
                freed += await self._write_noted(connection, noted[start : start + ANNOUNCED_AT_ONCE_MAX])
            if touched:
                cursor = await connection.execute(sql.TOUCH_MACHINES, (touched,), prepare=True)
                known = {str(session_id) for (session_id,) in await cursor.fetchall()}
        missing = [session_id for session_id in touched if session_id in self._touched and session_id not in known]
        self._touched.difference_update(touched)
        return Flushed(freed, changed, missing)

    async def _write_noted(self, connection: AsyncConnection, noted: Sequence[_Announcement]) -> list[DispatchJob]:
        """What was announced or withdrawn since it was noted stays as it is: nothing would put it right again."""
        async with self._writing:
            current = [one for one in noted if self._noted.get(one.snapshot.session_id) is one]
            freed = await self._write(connection, current) if current else []
            for one in current:
                if self._noted.get(one.snapshot.session_id) is one:
                    del self._noted[one.snapshot.session_id]
        return freed

    async def _write_health(self, connection: AsyncConnection, seen: dict[str, list[Observation]]) -> list[str]:
        aside: dict[str, float] = {}
        async with connection.transaction():
            cursor = await connection.execute(sql.LOCK_HEALTH, (list(seen),))
            after = {}
            for machine_id, stored in await cursor.fetchall():
                health = before = health_in(stored)
                for one in seen[machine_id]:
                    health = observe(health, one, self._policy)
                after[machine_id] = health
                if health.put_aside_until != before.put_aside_until:
                    aside[machine_id] = health.put_aside_until
            await connection.execute(
                sql.WRITE_HEALTH,
                (
                    list(after),
                    [msgspec.json.encode(health) for health in after.values()],
                    [max(one.at for one in seen[machine_id]) for machine_id in after],
                ),
            )
            if aside:
                await connection.execute(sql.PUT_ASIDE, (list(aside), list(aside.values())))
        self._health.update((known, health) for known, health in after.items() if known in self._health)
        return list(aside)

    async def machines_of(self, account_id: str, machine_id: str | None = None) -> list[MachineRecord]:
        """The machines of an account, all or one, wherever they are connected."""
        async with connection_of(self._pool) as connection:
            cursor = await connection.execute(
                sql.MACHINES_OF_ACCOUNT, {"account_id": account_id, "machine_id": machine_id}
            )
            return [record_in(row) for row in await cursor.fetchall()]

    # --- slots and the queue -------------------------------------------------------------------------------------

    async def release(self, request_id: UUID, attempt: int) -> list[DispatchJob]:
        """Give an attempt's slot back; returns requests that may take it. Doing it twice does nothing.

        Slots that come while others are given back, or right after, go together in the next statement, and one of
        those who gave them back gets all the requests that they woke.
        """
        self._leaving.append((request_id, attempt))
        async with self._giving_back:
            if not self._leaving:  # somebody before took this one along
                return []
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._gave_back_at + GIVE_BACK_SECONDS - loop.time())
            leaving, self._leaving = self._leaving, []
            self._gave_back_at = loop.time()
            try:
                return await self._give_back(leaving)
            except BaseException:
                self._leaving = leaving + self._leaving  # for whoever comes next; giving back twice does nothing
                raise

    async def _give_back(self, leaving: Sequence[tuple[UUID, int]]) -> list[DispatchJob]:
        async with connection_of(self._pool) as connection:
            cursor = await connection.execute(sql.RELEASE_CLAIMS, slots_in(leaving), prepare=True)
            freed = await cursor.fetchall()
            for model, seconds, *_ in freed:
                self._slot_seconds[model] = 0.8 * self._slot_seconds.get(model, seconds) + 0.2 * seconds
            return await self._wake(connection, freed_in(freed))

    async def leave_queue(self, request_id: UUID) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.REMOVE_WAITER, (request_id,), prepare=True)

    async def offers(self, model: str | None = None, *, own_account: str = "") -> list[Snapshot]:
        """The machines that a consumer here can be routed to, all or those that offer one model. Those that serve their
        owner alone are among them for ``own_account``."""
        wanted = {"model": model, "gateway_id": self._reach(), "own_account": own_account or None}
        async with connection_of(self._pool) as connection:
            cursor = await connection.execute(sql.MODEL_OFFERS, wanted, prepare=True)
            return [_snapshot.decode(row[0]) for row in await cursor.fetchall()]

    async def is_idle(self, model: str) -> bool:
        """Whether a machine that offers a model has nothing to do, and nobody waits for the model."""
        async with connection_of(self._pool) as connection:
            floor = TRUST_RANK[self._policy.minimum_trust]
            wanted = {"model": model, "gateway_id": self._reach(), "trust": floor}
            return await (await connection.execute(sql.IDLE_FOR_MODEL, wanted)).fetchone() is not None

    async def _write(self, connection: AsyncConnection, told: Sequence[_Announcement]) -> list[DispatchJob]:
        cursor = await connection.execute(sql.ANNOUNCE_MACHINES, self._columns(told), prepare=True)
        free = {str(session_id) for session_id, slots in await cursor.fetchall() if slots}
        models = {model for one in told if one.snapshot.session_id in free for model in one.snapshot.models}
        return await self._wake(connection, Freed(list(free), list(models)))

    async def _wake(self, connection: AsyncConnection, freed: Freed) -> list[DispatchJob]:
        steps, rows = waking(freed, self._policy, self._reach()), None
        while True:
            try:
                statement, wanted = steps.send(rows)  # type: ignore[arg-type]
            except StopIteration as end:
                found: list[DispatchJob] = end.value
                return found
            rows = await (await connection.execute(statement, wanted, prepare=True)).fetchall()

    def _reach(self) -> UUID | None:
        """The gateway that machines and consumers must share, None when they need not."""
        return None if self._relayed else self._gateway_id()

    def _columns(self, told: Sequence[_Announcement]) -> dict[str, list[Any]]:
        """Announcements as the columns of one statement: a row a machine, and a row a model of a machine."""
        snapshots = [one.snapshot for one in told]
        rows = []
        for one in told:
            snapshot, health = one.snapshot, self.health_of(one.snapshot.machine_id)
            for model in snapshot.models:
                rank = rank_of(Candidate(snapshot, health=health), model, self._size_of(model) or 0.0, self._policy)
                rows.append((snapshot.session_id, model, one.offers(model), *rank, health.put_aside_until))
        names = ("model_sessions", "models", "model_routables", *Rank._fields, "put_aside_until")
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
        return dict(zip(names, columns, strict=True)) | {
            "sessions": [one.session_id for one in snapshots],
            "gateways": [one.gateway_id for one in snapshots],
            "machines": [one.machine_id for one in snapshots],
            "accounts": [one.account_id for one in snapshots],
            "serials": [one.serial for one in snapshots],
            "trusts": [TRUST_RANK.get(one.trust_level, -1) for one in snapshots],
            "capacities": [one.capacity for one in snapshots],
            "routables": [one.routable for one in told],
            "snapshots": [msgspec.json.encode(one) for one in snapshots],
        }


def record_in(row: Sequence[Any]) -> MachineRecord:
    machine_id, account_id, chip, machine_model, models, last_seen_at, health, snapshot, updated_at, loads, asked_at = (
        row
    )
    return MachineRecord(
        machine_id=machine_id,
        account_id=account_id,
        chip=chip,
        machine_model=machine_model,
        models=tuple(models),
        last_seen_at=max(last_seen_at, updated_at or last_seen_at).timestamp(),
        health=health_in(health),
        snapshot=_snapshot.decode(snapshot) if snapshot else None,
        loads={model: Load(*counts) for model, *counts in loads or ()},
        asked_at=asked_at or {},
    )
