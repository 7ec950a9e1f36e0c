"""The fleet table: connected machines, their claimed slots, and the requests that wait for one.

It is derived from live sockets and may be lost at any time: gateways announce their machines again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.dispatch import DispatchJob
from domain.routing import Candidate, Load, Snapshot

_snapshot = msgspec.json.Decoder(Snapshot)
_job = msgspec.json.Decoder(DispatchJob)


AttemptHasSlot = psycopg.errors.UniqueViolation


class SchedulerFleet:
    """The scheduler's side, called from worker threads."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool

    def candidates(self, model: str, gateway_id: UUID) -> list[Candidate]:
        """Machines on a gateway that offer a model, with what is in flight on each."""
        with self._pool.connection() as connection:
            rows = connection.execute(sql.CANDIDATES, {"model": model, "gateway_id": gateway_id}, prepare=True)
            return [Candidate(_snapshot.decode(row[0]), Load(*row[1:])) for row in rows]

    def claim(self, job: DispatchJob, session_id: str, *, seconds: float) -> bool:
        """Take a slot of a machine for an attempt; False when it has none left.

        Raises:
            AttemptHasSlot: the attempt has a slot already; nothing changed.
        """
        with self._pool.connection() as connection:
            row = connection.execute(
                sql.CLAIM_SLOT,
                {
                    "session_id": session_id,
                    "request_id": job.request_id,
                    "attempt": job.attempt,
                    "model": job.model,
                    "output_tokens": job.output_tokens,
                    "gateway_id": job.reply_to,
                    "seconds": seconds,
                },
                prepare=True,
            ).fetchone()
            return row is not None

    def claimed_session(self, request_id: UUID, attempt: int) -> str | None:
        with self._pool.connection() as connection:
            row = connection.execute(sql.CLAIM_OF, (request_id, attempt)).fetchone()
            return str(row[0]) if row else None

    def release(self, request_id: UUID, attempt: int) -> None:
        with self._pool.connection() as connection:
            connection.execute(sql.RELEASE_CLAIM, {"request_id": request_id, "attempt": attempt}, prepare=True)

    def park(self, job: DispatchJob, *, seconds: float, depth_max: int) -> bool:
        """Let a request wait; False when its model's queue is full."""
        waiter = {
            "request_id": job.request_id,
            "attempt": job.attempt,
            "model": job.model,
            "gateway_id": job.reply_to,
            "seconds": seconds,
            "message": msgspec.json.encode(job),
            "depth_max": depth_max,
        }
        with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            connection.execute(sql.LOCK_QUEUE, (job.model,), prepare=True)
            return connection.execute(sql.PARK_WAITER, waiter, prepare=True).fetchone() is not None

    def leave_queue(self, request_id: UUID) -> None:
        with self._pool.connection() as connection:
            connection.execute(sql.REMOVE_WAITER, (request_id,), prepare=True)

    def offers(self, model: str, gateway_id: UUID) -> int:
        """How many machines on a gateway offer a model, busy or not."""
        with self._pool.connection() as connection:
            wanted = {"model": model, "gateway_id": gateway_id}
            return len(connection.execute(sql.MODEL_OFFERS, wanted).fetchall())

    def wake(self, models: Sequence[str], count: int) -> list[DispatchJob]:
        with self._pool.connection() as connection:
            wanted = {"models": list(models), "gateway_id": None, "count": count}
            return _woken(connection.execute(sql.WAKE_WAITER, wanted, prepare=True))

    def sweep(self) -> list[DispatchJob]:
        """Forget what lapsed, and wake every queue once in case a wake was lost."""
        with self._pool.connection() as connection:
            connection.execute(sql.SWEEP_FLEET)
            models = [row[0] for row in connection.execute(sql.WAITING_MODELS)]
            wanted = {"models": models, "gateway_id": None, "count": 100}
            return _woken(connection.execute(sql.WAKE_WAITER, wanted)) if models else []


class GatewayFleet:
    """The gateway's side: it keeps the machines on its own sockets true."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], gateway_id: Callable[[], UUID]) -> None:
        self._pool = pool
        self._gateway_id = gateway_id

    async def announce(self, snapshot: Snapshot, *, routable: bool) -> list[DispatchJob]:
        """Write a machine's state; returns requests that may now find a slot on it."""
        models = list(snapshot.models)
        async with connection_of(self._pool) as connection:
            cursor = await connection.execute(
                sql.ANNOUNCE_MACHINE,
                {
                    "session_id": snapshot.session_id,
                    "gateway_id": snapshot.gateway_id,
                    "models": models,
                    "capacity": snapshot.capacity,
                    "routable": routable,
                    "snapshot": msgspec.json.encode(snapshot),
                },
                prepare=True,
            )
            free = await cursor.fetchone()
            if not routable or free is None or free[0] == 0:
                return []
            return await self._wake(connection, models, free[0])

    async def withdraw(self, session_id: str) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.WITHDRAW_MACHINE, {"session_id": session_id})

    async def release(self, request_id: UUID, attempt: int) -> list[DispatchJob]:
        """Give an attempt's slot back; returns the request that may take it. Doing it twice does nothing."""
        async with connection_of(self._pool) as connection:
            wanted = {"request_id": request_id, "attempt": attempt}
            freed = await (await connection.execute(sql.RELEASE_CLAIM, wanted, prepare=True)).fetchone()
            if freed is None:
                return []
            return await self._wake(connection, freed[0], 1)

    async def _wake(self, connection: AsyncConnection, models: Sequence[str], count: int) -> list[DispatchJob]:
        wanted = {"models": models, "gateway_id": self._gateway_id(), "count": count}
        cursor = await connection.execute(sql.WAKE_WAITER, wanted, prepare=True)
        return _woken(await cursor.fetchall())

    async def leave_queue(self, request_id: UUID) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.REMOVE_WAITER, (request_id,), prepare=True)

    async def offers(self, model: str | None = None) -> list[Snapshot]:
        """The machines here that can be routed to, all or those that offer one model."""
        wanted = {"model": model, "gateway_id": self._gateway_id()}
        async with connection_of(self._pool) as connection:
            cursor = await connection.execute(sql.MODEL_OFFERS, wanted, prepare=True)
            return [_snapshot.decode(row[0]) for row in await cursor.fetchall()]


def _woken(rows: Iterable[Sequence[Any]]) -> list[DispatchJob]:
    return [_job.decode(row[0]) for row in rows]
