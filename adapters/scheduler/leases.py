"""A gateway's lease: while it stands, the gateway answers for its open requests; once lapsed, the sweeper ends them.

A gateway that lost its lease (a machine that slept, a database out of reach) aborts what it had open and goes on
under a new id, because others may already have acted on the end of the old one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection

log = logging.getLogger(__name__)


class GatewayLease:
    """``gateway_id`` names this gateway for as long as one lease lasts.

    ``on_lost`` is called when a lease is lost, while the old id still stands; ``on_renamed`` when a new one is taken.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        internal_url: str,
        *,
        seconds: float,
        renew_seconds: float,
        on_lost: Callable[[], None],
        on_renamed: Callable[[], Awaitable[None]],
    ) -> None:
        self.gateway_id: UUID = uuid4()
        self._pool = pool
        self._internal_url = internal_url
        self._seconds = seconds
        self._renew_seconds = renew_seconds
        self._on_lost = on_lost
        self._on_renamed = on_renamed
        self._good_until = 0.0

    async def end_all(self) -> None:
        """For a process that owns the database's directory: whoever held a lease before it is dead."""
        async with self._pool.connection() as connection:
            await connection.execute(sql.END_ALL_LEASES)

    async def take(self, gateway_id: UUID) -> None:
        """Take a lease; only then does this gateway go by its id, because an id without a lease stands for the dead."""
        started = time.monotonic()
        async with self._pool.connection() as connection:
            await connection.execute(sql.TAKE_LEASE, (gateway_id, self._internal_url, self._seconds))
        self._good_until = started + self._seconds
        self.gateway_id = gateway_id

    async def keep(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(self._renew_seconds)
            if await self._renewed():
                continue
            log.error("this gateway lost its lease; its open requests are aborted")
            self._on_lost()
            await self._take_again()
            await self._on_renamed()

    async def end(self) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(sql.END_LEASE, (self.gateway_id,))

    async def _take_again(self) -> None:
        while True:
            try:
                await self.take(uuid4())
                return
            except (psycopg.Error, PoolTimeout) as error:
                log.warning("no new lease yet: %s", type(error).__name__)
                await asyncio.sleep(1.0)

    async def _renewed(self) -> bool:
        """False once the lease is certainly lost: refused by the database, or not renewed in its time."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._renew_seconds), self._pool.connection() as connection:
                cursor = await connection.execute(sql.RENEW_LEASE, (self._seconds, self.gateway_id))
                if await cursor.fetchone() is None:
                    return False
            self._good_until = started + self._seconds
        except (psycopg.Error, PoolTimeout, TimeoutError) as error:
            log.warning("the gateway's lease could not be renewed: %s", type(error).__name__)
        return time.monotonic() < self._good_until
