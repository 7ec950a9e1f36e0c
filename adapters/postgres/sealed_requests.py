"""Opens sealed requests, each once: what was seen is shared by all gateways of a database."""

from __future__ import annotations

import hashlib

from psycopg_pool import AsyncConnectionPool

from adapters.crypto.transport import SealedRequest, TransportKey, TransportKeys
from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.errors import DecryptionFailed, EncryptionUnavailable

SEEN_SECONDS = 600.0
"""How long a request that was opened is recognised (consumer API, section 14.3)."""


class SealedRequests:
    """``keys`` is None where nothing can be sealed."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], keys: TransportKeys | None) -> None:
        self._pool = pool
        self._keys = keys

    def key(self) -> TransportKey:
        """The key to seal to. Raises EncryptionUnavailable."""
        return self._needed().current

    async def open(self, kid: str, ephemeral_public_key: str, ciphertext: str) -> SealedRequest:
        """Open an envelope, the first time that it comes.

        Raises:
            EncryptionUnavailable: there is no key.
            KidMismatch: it is sealed to a key that is not in use.
            InvalidSealedEnvelope: the consumer's key or the ciphertext is not what it should be.
            DecryptionFailed: the box does not open, or was opened before.
            ServiceUnavailable: nobody can tell now whether it was opened before.
        """
        opened = self._needed().open(kid, ephemeral_public_key, ciphertext)
        values = {"digest": hashlib.sha256(opened.use).digest(), "seconds": SEEN_SECONDS}
        async with connection_of(self._pool) as connection:
            if not await (await connection.execute(sql.SEE_SEALED_REQUEST, values)).fetchone():
                raise DecryptionFailed
        return opened

    def _needed(self) -> TransportKeys:
        if self._keys is None:
            raise EncryptionUnavailable
        return self._keys
