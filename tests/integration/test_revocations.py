"""A gateway hears of revoked keys in two ways, and either is enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg

from adapters.postgres import credentials
from adapters.postgres.revocations import LISTEN, RevocationWatch
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]


class Heard:
    """Collects the keys that a watch heard of."""

    def __init__(self, *in_use: str) -> None:
        self.in_use = set(in_use)
        self.keys: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, key_id: str) -> None:
        self.in_use.discard(key_id)
        self.keys.put_nowait(key_id)


@asynccontextmanager
async def watching(dsn: str, heard: Heard, poll_seconds: float) -> AsyncGenerator[None, None]:
    watch = RevocationWatch(dsn, lambda: heard.in_use, heard, poll_seconds=poll_seconds)
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()


async def listening(look: Connection, other_than: int = 0) -> int:
    """The server process of the watch, once it listens."""
    while True:
        rows = look.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = %s AND pid <> %s",
            (LISTEN, other_than),
        ).fetchall()
        if rows:
            return int(rows[0][0])
        await asyncio.sleep(0.01)


async def test_a_revocation_is_heard_of_without_asking(ledger: str, look: Connection) -> None:
    heard = Heard()
    key = credentials.create_api_key(look, "acct", "name")
    async with watching(ledger, heard, poll_seconds=3_600):
        await listening(look)
        credentials.revoke_api_key(look, key.secret)
        assert await asyncio.wait_for(heard.keys.get(), 20) == key.key_id


async def test_a_revocation_that_nobody_announced_is_found_when_its_key_is_in_use(
    ledger: str, look: Connection
) -> None:
    key, other = (credentials.create_api_key(look, "acct", "name") for _ in range(2))
    heard = Heard(key.key_id, other.key_id)
    async with watching(ledger, heard, poll_seconds=0.05):
        look.execute("UPDATE api_keys SET revoked_at = now() WHERE key_id = %s", (key.key_id,))
        assert await asyncio.wait_for(heard.keys.get(), 20) == key.key_id
        assert heard.in_use == {other.key_id}


async def test_a_watch_whose_connection_broke_listens_again(ledger: str, look: Connection) -> None:
    heard = Heard()
    key = credentials.create_api_key(look, "acct", "name")
    async with watching(ledger, heard, poll_seconds=3_600):
        broken = await listening(look)
        look.execute("SELECT pg_terminate_backend(%s)", (broken,))
        await listening(look, other_than=broken)
        credentials.revoke_api_key(look, key.key_id)
        assert await asyncio.wait_for(heard.keys.get(), 20) == key.key_id


def test_a_revocation_that_is_rolled_back_is_not_announced(ledger: str, look: Connection) -> None:
    key = credentials.create_api_key(look, "acct", "name")
    with psycopg.connect(ledger, autocommit=True) as listener:
        listener.execute(LISTEN)
        with look.transaction(force_rollback=True):
            credentials.revoke_api_key(look, key.key_id)
        credentials.revoke_api_key(look, "nothing")
        assert list(listener.notifies(timeout=0.2)) == []
