"""Codes that were sent to addresses. They are short, so their hashes are keyed with what is not in the database."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.credentials import hash_of
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.errors import RateLimited

TRIES_MAX = 5
CODES_AN_HOUR_MAX = 5
CODES_A_DAY_MAX = 10
"""Of one address. With five tries a code, whoever guesses all year long is right with a chance of two percent."""


class StoredSignInCodes:
    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], code_hash: Callable[..., str]) -> None:
        self._pool = pool
        self._code_hash = code_hash

    async def keep(self, email: str, challenge: str, code: str, seconds: float) -> None:
        """Remember a code that is about to be sent. An empty challenge asks for none when the code is used.

        Raises:
            RateLimited: the address got as many as it may.
        """
        values = {
            "email": email,
            "challenge_hash": hash_of(challenge) if challenge else None,
            "code_hash": self._hash(email, challenge, code),
            "seconds": seconds,
        }
        async with connection_of(self._pool) as connection, connection.transaction():
            await connection.execute(sql.LOCK_ADDRESS, (email,))
            row = await (await connection.execute(sql.CODES_SENT, (email,))).fetchone()
            assert row is not None
            if row[0] >= CODES_AN_HOUR_MAX or row[1] >= CODES_A_DAY_MAX:
                raise RateLimited("This address got too many codes; try again later.", retry_after_seconds=60)
            await connection.execute(sql.ADD_CODE, values)

    async def use(self, email: str, challenge: str, code: str) -> bool:
        """Whether this is the newest code that was sent there for this challenge, and unused until now."""
        values = {
            "email": email,
            "challenge_hash": hash_of(challenge) if challenge else None,
            "tries_max": TRIES_MAX,
        }
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.TRY_CODE, values)).fetchone()
            if row is None or not hmac.compare_digest(row[1], self._hash(email, challenge, code)):
                return False
            return await (await connection.execute(sql.SPEND_CODE, (row[0],))).fetchone() is not None

    def _hash(self, email: str, challenge: str, code: str) -> str:
        return self._code_hash("sign-in", email, challenge, code)
