"""The whole fleet and its queues as an operator looks at them. It only reads."""

from __future__ import annotations

import time
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from psycopg_pool import ConnectionPool

from adapters.postgres import sql
from adapters.scheduler.decision import Decision
from adapters.scheduler.fleet import SchedulerFleet
from adapters.scheduler.gateway_fleet import MachineRecord, record_in
from domain.routing import Assessment, Choice, Demand, Policy, assess


class Queue(NamedTuple):
    """The requests that wait for a model. ``slot_seconds`` is how long a request lately took a slot, None when nobody
    knows."""

    model: str
    requests: int
    accounts: int
    oldest_seconds: float
    slot_seconds: float | None


class Survey:
    def __init__(self, pool: ConnectionPool[Any], policy: Policy, random: Random, *, relayed: bool = False) -> None:
        self.policy = policy
        self._pool = pool
        self._fleet = SchedulerFleet(pool)
        self._decision = Decision(self._fleet, policy, random, relayed=relayed)

    def machines(self, limit: int) -> list[MachineRecord]:
        """Those that are connected first, then those that were here last."""
        with self._pool.connection() as connection:
            return [record_in(row) for row in connection.execute(sql.FLEET_MACHINES, (limit,), prepare=False)]

    def queues(self) -> list[Queue]:
        """Those that are not empty."""
        with self._pool.connection() as connection:
            return [Queue(*row) for row in connection.execute(sql.QUEUES)]

    def assess(self, demand: Demand) -> list[Assessment]:
        """Every connected machine that offers the model, the eligible ones first."""
        living = set(self._living_gateways())
        offered = self._fleet.machines_for(demand.model, None)
        return assess(
            (one for one in offered if one.snapshot.gateway_id in living), demand, self.policy, now=time.time()
        )

    def choices(self, demand: Demand) -> dict[str, Choice | None]:
        """What a scheduler would choose now for a request at each gateway; None: it would wait."""
        return {gateway_id: self._decision.choose(demand, UUID(gateway_id)) for gateway_id in self._living_gateways()}

    def _living_gateways(self) -> list[str]:
        with self._pool.connection() as connection:
            return [row[0] for row in connection.execute(sql.LIVING_GATEWAYS)]
