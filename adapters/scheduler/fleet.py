"""The fleet table as schedulers use it: candidates, claimed slots, and the requests that wait for one.

It is derived from live sockets and may be lost at any time: gateways announce their machines again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg_pool import ConnectionPool

from adapters.postgres import sql
from adapters.scheduler.waking import Freed, health_in, jobs_in, waking
from domain.dispatch import DispatchJob
from domain.routing import TRUST_RANK, Candidate, Demand, Load, Policy, Snapshot, shape_of
from domain.routing.gates import kv_gb

AttemptHasSlot = psycopg.errors.UniqueViolation

NARROWED_MAX = 24
"""How many machines of a trust level the index gives back; the statements say the same."""

DEMAND_NOTED_SECONDS = 10.0

_CHEAPEST = (sql.CHEAPEST_FOR_SHORT, sql.CHEAPEST_FOR_USUAL, sql.CHEAPEST_FOR_LONG, sql.CHEAPEST_FOR_READING)
_snapshot = msgspec.json.Decoder(Snapshot)


class Narrowed(NamedTuple):
    """Candidates of an index; ``complete`` when there are no others."""

    candidates: list[Candidate]
    complete: bool


class Supply(NamedTuple):
    """What serves a model, busy or not. ``slot_seconds`` is how long a request lately took a slot, None when nobody
    knows."""

    machines: int
    healthy: int
    slots: int
    slot_seconds: float | None


class Place(NamedTuple):
    """A place in a queue; the first position is 1. ``taken_now`` is false for a request that had it before, ``shed`` is
    the request that lost its own place to this one."""

    position: int
    taken_now: bool
    shed: DispatchJob | None = None


class SchedulerFleet:
    """Called from worker threads. A ``gateway_id`` of None means the machines of all gateways."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool
        self._demand_noted_at: dict[str, float] = {}

    # --- candidates ----------------------------------------------------------------------------------------------

    def cheapest(self, demand: Demand, policy: Policy, gateway_id: UUID | None) -> Narrowed:
        """The machines with a free slot that an index puts first for a request of this size."""
        wanted = {
            "model": demand.model,
            "trusts": _ranks_from(policy.minimum_trust, demand.constraints.minimum_trust),
            "gateway_id": gateway_id,
            "room_gb": kv_gb(demand.prompt_tokens + demand.output_tokens, policy) if demand.size_gb > 0 else -1e6,
        }
        with self._pool.connection() as connection:
            found = _candidates(connection.execute(_CHEAPEST[shape_of(demand)], wanted, prepare=True, binary=True))
        return Narrowed(found, complete=len(found) < NARROWED_MAX)

    def machines_for(
        self,
        model: str,
        gateway_id: UUID | None,
        *,
        own_account: str = "",
        account_id: str = "",
        allowed: Sequence[str] = (),
        session_id: str | None = None,
    ) -> list[Candidate]:
        """All machines that offer a model to everybody or to ``own_account`` alone: of an account, of those that are
        named, or one session."""
        wanted = {
            "model": model,
            "gateway_id": gateway_id,
            "own_account": own_account or None,
            "account_id": account_id or None,
            "allowed": list(allowed) or None,
            "session_id": session_id,
        }
        with self._pool.connection() as connection:
            return _candidates(connection.execute(sql.MACHINES_FOR, wanted, prepare=False, binary=True))

    def supply(self, demand: Demand, policy: Policy, gateway_id: UUID | None) -> Supply:
        asked = demand.constraints
        wanted = {
            "model": demand.model,
            "trusts": _ranks_from(policy.minimum_trust, asked.minimum_trust),
            "gateway_id": gateway_id,
            "own_account": asked.own_account or None,
            "own_trusts": _ranks_from(asked.minimum_trust),
            "account_id": asked.only_account or None,
            "allowed": list(asked.allowed) or None,
        }
        with self._pool.connection() as connection:
            row = connection.execute(sql.MODEL_SUPPLY, wanted, prepare=False).fetchone()
            assert row is not None
            return Supply(*row)

    def has_room_to_spare(self, model: str) -> bool:
        """Whether nobody waits for the model and a slot of it is left when one more is taken."""
        with self._pool.connection() as connection:
            row = connection.execute(sql.ROOM_TO_SPARE, {"model": model}, prepare=True).fetchone()
            return row is not None and bool(row[0])

    def note_demand(self, model: str) -> None:
        """Somebody asked for a model; written once in a while."""
        now = time.monotonic()
        if now - self._demand_noted_at.get(model, -DEMAND_NOTED_SECONDS) < DEMAND_NOTED_SECONDS:
            return
        self._demand_noted_at[model] = now
        with self._pool.connection() as connection:
            connection.execute(sql.NOTE_DEMAND, (model,))

    # --- slots ---------------------------------------------------------------------------------------------------

    def claim(self, job: DispatchJob, session_id: str, *, seconds: float, alone: bool = False) -> bool:
        """Take a slot of a machine for an attempt; False when it has none left, or with ``alone`` has any other work.

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
                    "account_id": job.account_id,
                    "model": job.model,
                    "output_tokens": job.output_tokens,
                    "gateway_id": job.reply_to,
                    "seconds": seconds,
                    "alone": alone,
                },
                prepare=True,
            ).fetchone()
            return row is not None

    def claimed_session(self, request_id: UUID, attempt: int) -> str | None:
        with self._pool.connection() as connection:
            row = connection.execute(sql.CLAIM_OF, (request_id, attempt)).fetchone()
            return str(row[0]) if row else None

    def release(self, request_id: UUID, attempt: int) -> Freed:
        with self._pool.connection() as connection:
            wanted = slots_in([(request_id, attempt)])
            return freed_in(connection.execute(sql.RELEASE_CLAIMS, wanted, prepare=True).fetchall())

    # --- the queue -----------------------------------------------------------------------------------------------

    def park(self, job: DispatchJob, *, seconds: float, depth_max: int) -> Place | None:
        """Let a request wait, in its turn; None when the request has ended, or its model's queue is full and no
        account has more requests in it."""
        waiter = {
            "request_id": job.request_id,
            "attempt": job.attempt,
            "account_id": job.account_id,
            "model": job.model,
            "gateway_id": job.reply_to,
            "seconds": seconds,
            "message": msgspec.json.encode(job),
            "depth_max": depth_max,
        }
        with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            connection.execute(sql.LOCK_QUEUE, (job.model,), prepare=True)
            parked = connection.execute(sql.PARK_WAITER, waiter, prepare=True).fetchone()
            shed: list[DispatchJob] = []
            if parked is None:
                shed = jobs_in(connection.execute(sql.SHED_WAITER, waiter, prepare=True))
                if not shed:
                    return None
                parked = connection.execute(sql.PARK_WAITER, waiter, prepare=True).fetchone()
                assert parked is not None
            *turn, taken_now = parked
            ahead = connection.execute(sql.PLACE_IN_QUEUE, (job.model, *turn), prepare=True).fetchone()
            assert ahead is not None
            return Place(max(1, ahead[0]), taken_now, *shed)

    def anybody_waits(self, model: str) -> bool:
        with self._pool.connection() as connection:
            return connection.execute(sql.ANYBODY_WAITS, (model,)).fetchone() is not None

    def leave_queue(self, request_id: UUID) -> None:
        with self._pool.connection() as connection:
            connection.execute(sql.REMOVE_WAITER, (request_id,), prepare=True)

    def wake_for(self, freed: Freed, policy: Policy, gateway_id: UUID | None) -> list[DispatchJob]:
        """Wake whoever can have what came free."""
        steps = waking(freed, policy, gateway_id)
        with self._pool.connection() as connection:
            rows: Any = None
            while True:
                try:
                    statement, wanted = steps.send(rows)
                except StopIteration as end:
                    found: list[DispatchJob] = end.value
                    return found
                rows = connection.execute(statement, wanted, prepare=True).fetchall()

    def wake(self, models: Sequence[str], count: int) -> list[DispatchJob]:
        with self._pool.connection() as connection:
            wanted = {"models": list(models), "gateway_id": None, "count": count}
            return jobs_in(connection.execute(sql.WAKE_WAITER, wanted, prepare=True))

    def sweep(self) -> list[DispatchJob]:
        """Forget what lapsed, and wake every queue once in case a wake was lost."""
        with self._pool.connection() as connection:
            connection.execute(sql.SWEEP_FLEET)
            models = [row[0] for row in connection.execute(sql.WAITING_MODELS)]
            wanted = {"models": models, "gateway_id": None, "count": 100}
            return jobs_in(connection.execute(sql.WAKE_WAITER, wanted)) if models else []


def slots_in(attempts: Sequence[tuple[UUID, int]]) -> dict[str, Any]:
    """The parameters of RELEASE_CLAIMS."""
    return {
        "request_ids": [request_id for request_id, _ in attempts],
        "attempts": [attempt for _, attempt in attempts],
    }


def freed_in(rows: Sequence[Sequence[Any]]) -> Freed:
    """What RELEASE_CLAIMS returned: the machines and their models are the same in every row."""
    return Freed(*rows[0][2:]) if rows else Freed((), ())


def _candidates(rows: Iterable[Sequence[Any]]) -> list[Candidate]:
    return [
        Candidate(_snapshot.decode(snapshot), Load(busy, requests, tokens), health_in(health))
        for snapshot, busy, requests, tokens, health in rows
    ]


def _ranks_from(*minimums: str) -> list[int]:
    """The ranks of trust that are enough for all of these."""
    floor = max(TRUST_RANK.get(minimum, 0) for minimum in minimums)
    return [rank for rank in TRUST_RANK.values() if rank >= floor]
