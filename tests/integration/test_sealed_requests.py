"""What was sealed is opened once, whichever gateway of a database sees it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from adapters.crypto.transport import KeyRing, TransportKeys
from adapters.postgres.pool import make_async_pool
from adapters.postgres.sealed_requests import SealedRequests
from domain.errors import DecryptionFailed, EncryptionUnavailable, KidMismatch, ServiceUnavailable
from tests.unit.test_transport_keys import KEY, sealed


async def test_of_many_gateways_one_opens_it(database: str) -> None:
    async with make_async_pool(database, size_max=4) as one, make_async_pool(database, size_max=4) as other:
        gateways = [SealedRequests(pool, TransportKeys(lambda: KeyRing(KEY))) for pool in (one, other)]
        for _ in range(5):
            envelope = sealed()[:3]
            results = await asyncio.gather(
                *(gateway.open(*envelope) for gateway in gateways * 4), return_exceptions=True
            )
            refusals = [result for result in results if isinstance(result, DecryptionFailed)]
            assert len(refusals) == len(results) - 1


async def test_what_is_past_its_time_is_forgotten_bit_by_bit(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO sealed_requests SELECT sha256(n::text::bytea), now() - interval '1 s'"
            " FROM generate_series(1, 250) n"
        )
        async with make_async_pool(database, size_max=2) as pool:
            opener = SealedRequests(pool, TransportKeys(lambda: KeyRing(KEY)))
            left = []
            for _ in range(4):
                await opener.open(*sealed()[:3])
                left.append(connection.execute("SELECT count(*) FROM sealed_requests").fetchone())
            assert left == [(151,), (52,), (3,), (4,)]
            repeated = sealed()[:3]
            await opener.open(*repeated)
            connection.execute("UPDATE sealed_requests SET expires_at = now() - interval '1 s'")
            await opener.open(*repeated)  # it may come again after its time
            with pytest.raises(DecryptionFailed):
                await opener.open(*repeated)


async def test_what_does_not_open_leaves_no_trace(database: str) -> None:
    async with make_async_pool(database, size_max=2) as pool:
        opener = SealedRequests(pool, TransportKeys(lambda: KeyRing(KEY)))
        kid, ephemeral, ciphertext, _ = sealed()
        with pytest.raises(KidMismatch):
            await opener.open("0" * 16, ephemeral, ciphertext)
        with pytest.raises(DecryptionFailed):
            await opener.open(kid, ephemeral, "A" * 64)
        with pytest.raises(EncryptionUnavailable):
            await SealedRequests(pool, None).open(kid, ephemeral, ciphertext)
        async with pool.connection() as connection:
            found = await (await connection.execute("SELECT count(*) FROM sealed_requests")).fetchone()
        assert found == (0,)


async def test_while_nobody_can_tell_whether_it_was_opened_it_is_not(database: str) -> None:
    async with make_async_pool(database, size_max=2) as pool:
        opener = SealedRequests(pool, TransportKeys(lambda: KeyRing(KEY)))
        async with pool.connection() as connection:
            await connection.execute("ALTER TABLE sealed_requests RENAME TO gone")
        with pytest.raises(ServiceUnavailable):
            await opener.open(*sealed()[:3])
