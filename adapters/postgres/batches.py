"""Batches at rest. A batch has a key of its own, wrapped to the gateways' key for as long as the batch runs: that is
what lets it run while its consumer is away. Results are sealed to the consumer's API key at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Sequence
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec
from nacl.secret import SecretBox
from psycopg_pool import AsyncConnectionPool

from adapters.crypto.at_rest import CredentialKey, seal_to
from adapters.crypto.transport import TransportKeys
from adapters.postgres import sql
from adapters.postgres.files import PURPOSE
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.batches import BATCHES_MAX, FILE_SECONDS, WINDOW_SECONDS, Batch, BatchLost, Line, LineError, Status
from domain.errors import Conflict, EncryptionUnavailable
from domain.keys import Caller

_encode = msgspec.json.Encoder().encode
_errors = msgspec.json.Decoder(tuple[LineError, ...])


class StoredBatches:
    """``keys`` is None where batches cannot run."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], keys: TransportKeys | None) -> None:
        self._pool = pool
        self._keys = keys

    # --- for consumers -------------------------------------------------------------------------------------------

    async def create(
        self,
        caller: Caller,
        credential: str,
        *,
        endpoint: str,
        input_file_id: str,
        lines: Sequence[bytes],
        errors: Sequence[LineError],
        metadata: dict[str, str],
    ) -> UUID:
        """A batch that runs, or with errors one that has failed.

        Raises:
            Conflict: the key has as many unfinished batches as it may have.
            EncryptionUnavailable: this coordinator has no key to keep a batch with.
        """
        if self._keys is None:
            raise EncryptionUnavailable
        batch_id, secret = uuid4(), secrets.token_bytes(SecretBox.KEY_SIZE)
        box, consumer = SecretBox(secret), CredentialKey(credential, PURPOSE)
        kid, wrapped = self._keys.wrap(secret)
        values = {
            "batch_id": batch_id,
            "account_id": caller.account_id,
            "key_id": caller.key_id,
            "endpoint": endpoint,
            "input_file_id": input_file_id,
            "status": "failed" if errors else "in_progress",
            "total": len(lines),
            "errors": _encode(errors),
            "sealed_metadata": seal_to(consumer.public_key, _encode(metadata)),
            "consumer_key": consumer.public_key,
            "kid": kid,
            "wrapped_key": None if errors else wrapped,
            "seconds": WINDOW_SECONDS,
            "batches_max": BATCHES_MAX,
        }
        rows = await asyncio.to_thread(_sealed_rows, batch_id, lines, box)
        async with connection_of(self._pool) as connection, connection.transaction():
            await connection.execute(sql.LOCK_FILES, (caller.key_id,))
            if not await (await connection.execute(sql.INSERT_BATCH, values)).fetchone():
                raise Conflict(f"This API key has {BATCHES_MAX} unfinished batches; wait for one, or cancel one.")
            if not errors:
                await connection.cursor().executemany(sql.INSERT_BATCH_LINE, rows)
        return batch_id

    async def find(self, caller: Caller, credential: str, batch_id: UUID) -> Batch | None:
        return next(iter(await self._found(caller, credential, batch_id=batch_id)), None)

    async def list_of(self, caller: Caller, credential: str, *, after: UUID | None, limit: int) -> Sequence[Batch]:
        """The newest first."""
        return await self._found(caller, credential, after=after, limit=limit)

    async def cancel(self, caller: Caller, batch_id: UUID) -> None:
        """Start nothing more of it; does nothing to one that has ended."""
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.CANCEL_BATCH, {"batch_id": batch_id, "key_id": caller.key_id})

    async def _found(
        self,
        caller: Caller,
        credential: str,
        *,
        batch_id: UUID | None = None,
        after: UUID | None = None,
        limit: int = 1,
    ) -> list[Batch]:
        values = {"key_id": caller.key_id, "batch_id": batch_id, "after": after, "limit": limit}
        async with connection_of(self._pool) as connection:
            rows = await (await connection.execute(sql.FIND_BATCHES, values)).fetchall()
        key = CredentialKey(credential, PURPOSE)
        return [_batch(row, key) for row in rows]

    # --- for the gateway that runs them --------------------------------------------------------------------------

    async def take(self, gateway_id: UUID, known: Collection[UUID], limit: int) -> Sequence[BatchWork]:
        """Batches that no living gateway works on, other than those that are ``known``."""
        if self._keys is None:
            return []
        values = {"gateway_id": gateway_id, "known": list(known), "limit": limit}
        async with connection_of(self._pool) as connection:
            rows = await (await connection.execute(sql.TAKE_BATCHES, values)).fetchall()
        return [BatchWork(self._pool, self._keys, gateway_id, *row) for row in rows]

    async def forget_old(self) -> None:
        """Delete what is past its time."""
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.FORGET_OLD_FILES, {"seconds": FILE_SECONDS})


class BatchWork:
    """A batch in the hands of one gateway. Every change raises BatchLost when it is not in its hands any more."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        keys: TransportKeys,
        gateway_id: UUID,
        batch_id: UUID,
        account_id: str,
        key_id: str,
        endpoint: str,
        kid: str,
        wrapped_key: bytes,
        consumer_key: bytes,
    ) -> None:
        self.batch_id = batch_id
        self.account_id = account_id
        self.key_id = key_id
        self.endpoint = endpoint
        self._pool = pool
        self._keys = keys
        self._kid = kid
        self._wrapped_key = wrapped_key
        self._consumer_key = consumer_key
        self._ours = {"batch_id": batch_id, "gateway_id": gateway_id}
        self._box: SecretBox | None = None

    def unlock(self) -> None:
        """Get at the lines. Raises KidMismatch or DecryptionFailed when the gateways' key is another by now."""
        self._box = SecretBox(self._keys.unwrap(self._kid, self._wrapped_key))

    async def state(self) -> tuple[Status, bool]:
        """Its status, and whether its time is over."""
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.BATCH_STATE, self._ours)).fetchone()
        if row is None:
            raise BatchLost
        return row[0], row[1]

    async def lines(self, state: Literal["waiting", "running"], limit: int) -> Sequence[Line]:
        """The first lines that are ``waiting`` or ``running``."""
        assert self._box is not None
        async with connection_of(self._pool) as connection:
            rows = await (await connection.execute(sql.LINES_IN, (self.batch_id, state, limit))).fetchall()
        box = self._box
        return [
            Line(number, tries, box.decrypt(sealed), box.decrypt(draft) if draft else None)
            for number, tries, sealed, draft in rows
        ]

    async def begin(self, line: Line) -> int:
        """Note that a try of a line begins; returns which one it is."""
        return await self._change(sql.BEGIN_LINE, line)

    async def put_back(self, line: Line) -> None:
        """The try came to nothing, and nothing was charged."""
        await self._change(sql.PUT_BACK_LINE, line)

    async def keep_draft(self, line: Line, draft: bytes) -> None:
        """Keep what a machine answered, before it is paid for."""
        assert self._box is not None
        await self._change(sql.KEEP_DRAFT, line, draft=bytes(self._box.encrypt(draft)))

    async def finish(self, line: Line, result: bytes, *, failed: bool) -> None:
        sealed = seal_to(self._consumer_key, result)
        await self._change(sql.FINISH_LINE, line, failed=failed, result=sealed, result_bytes=len(result) + 1)

    async def end(self, status: Status) -> None:
        """Make the files of results, and erase the batch's key and all that it opens."""
        async with connection_of(self._pool) as connection, connection.transaction():
            ended = await connection.execute(sql.END_BATCH, self._ours | {"status": status})
            if not await ended.fetchone():
                raise BatchLost
            await connection.execute(sql.ERASE_LINES, self._ours)
            for of_errors in (False, True):
                file_id = f"file-{uuid4().hex}"
                values = {"file_id": file_id, "of_errors": of_errors, "seconds": FILE_SECONDS}
                await connection.execute(sql.MAKE_BATCH_FILE, self._ours | values)

    async def _change(self, statement: str, line: Line, **values: Any) -> int:
        async with connection_of(self._pool) as connection:
            changed = await connection.execute(statement, self._ours | values | {"number": line.number})
            row = await changed.fetchone()
        if row is None:
            raise BatchLost
        return int(row[0])


def _sealed_rows(batch_id: UUID, lines: Sequence[bytes], box: SecretBox) -> list[tuple[UUID, int, bytes]]:
    return [(batch_id, number, bytes(box.encrypt(line))) for number, line in enumerate(lines, 1)]


def _batch(row: tuple[Any, ...], key: CredentialKey) -> Batch:
    """The columns are the members in their order, with the errors encoded and the metadata sealed."""
    values = dict(zip(Batch._fields, row, strict=True))
    values["errors"] = _errors.decode(values["errors"])
    values["metadata"] = msgspec.json.decode(key.open(values["metadata"]), type=dict[str, str])
    return Batch(**values)
