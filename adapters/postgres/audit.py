"""What auditors looked at, and the replays that they started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of


class StoredAccesses:
    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def record(self, key_id: str, endpoint: str, parameters: Mapping[str, str]) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.INSERT_ACCESS, (key_id, endpoint, Jsonb(dict(parameters))))


class ReplayRun(NamedTuple):
    """``status`` is running, finished, failed or interrupted; the outcome is there once it is finished."""

    status: str
    projections: list[str]
    to_position: int
    started_at: datetime
    finished_at: datetime | None
    outcome: dict[str, Any] | None


class StoredReplayRuns:
    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def begin(
        self, run_id: UUID, requested_by: str, projections: Sequence[str], to_position: int, alive_seconds: float
    ) -> bool:
        """False while another run is active."""
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.INTERRUPT_DEAD_REPLAYS)
            try:
                cursor = await connection.execute(
                    sql.BEGIN_REPLAY, (run_id, requested_by, list(projections), to_position, alive_seconds)
                )
            except psycopg.errors.UniqueViolation:
                return False
            return await cursor.fetchone() is not None

    async def keep(self, run_id: UUID, alive_seconds: float) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.KEEP_REPLAY, (alive_seconds, run_id))

    async def end(self, run_id: UUID, status: str, outcome: Mapping[str, Any] | None) -> None:
        stored = Jsonb(dict(outcome)) if outcome is not None else None
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.END_REPLAY, (status, stored, run_id))

    async def find(self, run_id: UUID) -> ReplayRun | None:
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.REPLAY_RUN, (run_id,))).fetchone()
        return ReplayRun(*row) if row else None
