"""First answers to requests that carry an idempotency key, sealed under a key that the consumer's API key gives."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Any
from uuid import UUID, uuid4

from psycopg_pool import AsyncConnectionPool

from adapters.crypto.at_rest import CredentialBox
from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.errors import DarkbloomError, IdempotencyConflict, IdempotencyInFlight

log = logging.getLogger(__name__)


class StoredReplies:
    """``claim_seconds`` is how long a request may take at most, ``keep_seconds`` how long its reply is kept."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], *, claim_seconds: float, keep_seconds: float
    ) -> None:
        self._pool = pool
        self._claim_seconds = claim_seconds
        self._keep_seconds = keep_seconds
        self._endings: set[asyncio.Task[None]] = set()

    async def claim(
        self, credential: str, idempotency_key: str, target: str, body: bytes, gateway_id: UUID
    ) -> bytes | ReplyClaim:
        """The reply that was kept for this key, or the claim to make it.

        Raises:
            IdempotencyConflict: the key was used with another body.
            IdempotencyInFlight: the first request is still being answered.
        """
        box = CredentialBox(credential, "idempotent replies")
        claim = ReplyClaim(self, box, box.name_of(b"name", target.encode(), idempotency_key.encode()))
        fingerprint = box.name_of(b"body", body)
        values = {
            "name": claim.name,
            "fingerprint": fingerprint,
            "claim_id": claim.claim_id,
            "gateway_id": gateway_id,
            "seconds": self._claim_seconds,
        }
        async with connection_of(self._pool) as connection:
            if await (await connection.execute(sql.CLAIM_REPLY, values)).fetchone():
                return claim
            found = await (await connection.execute(sql.FIND_REPLY, (claim.name,))).fetchone()
        if found is not None and not hmac.compare_digest(found[0], fingerprint):
            raise IdempotencyConflict
        if found is None or found[1] is None:
            raise IdempotencyInFlight
        return box.open(found[1])

    async def keep(self, claim: ReplyClaim, sealed: bytes) -> None:
        values = claim.values | {"sealed": sealed, "seconds": self._keep_seconds}
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.KEEP_REPLY, values)

    def drop(self, claim: ReplyClaim) -> None:
        """In a task of its own, because the one that gives up may be cancelled at this moment."""
        task = asyncio.create_task(self._drop(claim))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _drop(self, claim: ReplyClaim) -> None:
        try:
            async with connection_of(self._pool) as connection:
                await connection.execute(sql.DROP_REPLY, claim.values)
        except DarkbloomError as error:
            log.warning("an idempotency key is freed later: %s", type(error).__name__)


class ReplyClaim:
    """The right to answer for one idempotency key, until the reply is kept or given up."""

    def __init__(self, replies: StoredReplies, box: CredentialBox, name: bytes) -> None:
        self.name = name
        self.claim_id = uuid4()
        self._replies = replies
        self._box = box
        self._ended = False

    @property
    def values(self) -> dict[str, Any]:
        return {"name": self.name, "claim_id": self.claim_id}

    async def keep(self, content: bytes) -> None:
        """Raises ServiceUnavailable when it could not be stored."""
        await self._replies.keep(self, self._box.seal(content))
        self._ended = True

    def give_up(self) -> None:
        """Let the next request with this key be a first one; does nothing after ``keep``."""
        if not self._ended:
            self._ended = True
            self._replies.drop(self)
