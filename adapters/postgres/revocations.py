"""Hears of revoked keys, so that a gateway can end the requests that it serves for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

import psycopg

from adapters.postgres import sql
from adapters.postgres.pool import KEEPALIVE, AsyncConnection

log = logging.getLogger(__name__)

LISTEN = "LISTEN keys_revoked"

POLL_SECONDS = 5.0
"""A notification can be missed: while the connection is down, or behind a pooler that passes none on."""


class RevocationWatch:
    """``keys_in_use`` are the keys that this gateway has open requests of."""

    def __init__(
        self,
        dsn: str,
        keys_in_use: Callable[[], Collection[str]],
        on_revoked: Callable[[str], None],
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._dsn = dsn
        self._poll_seconds = poll_seconds
        self._keys_in_use = keys_in_use
        self._on_revoked = on_revoked

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True, **KEEPALIVE) as connection:
                    await connection.execute(LISTEN)
                    await self._watch(connection)
            except psycopg.Error as error:
                log.warning("revocations are not heard of just now: %s", type(error).__name__)
            await asyncio.sleep(1.0)

    async def _watch(self, connection: AsyncConnection) -> None:
        while True:
            keys = list(self._keys_in_use())
            if keys:
                for (key_id,) in await (await connection.execute(sql.REVOKED_AMONG, (keys,))).fetchall():
                    self._on_revoked(key_id)
            async for notice in connection.notifies(timeout=self._poll_seconds, stop_after=1):
                self._on_revoked(notice.payload)
