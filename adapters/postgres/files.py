"""Files of consumers. Only the API key that uploaded one opens it: nothing here can read it without."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from psycopg_pool import AsyncConnectionPool

from adapters.crypto.at_rest import CredentialKey, seal_to
from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.batches import FILE_SECONDS, FILES_MAX, StoredFile
from domain.errors import Conflict
from domain.keys import Caller

PURPOSE = "files"


class StoredFiles:
    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def put(self, caller: Caller, credential: str, name: str, content: bytes) -> StoredFile:
        """Raises Conflict when the key has as many files as it may have."""
        key = CredentialKey(credential, PURPOSE)
        values = {
            "file_id": f"file-{uuid4().hex}",
            "account_id": caller.account_id,
            "key_id": caller.key_id,
            "sealed_name": seal_to(key.public_key, name.encode()),
            "sealed": await asyncio.to_thread(seal_to, key.public_key, content),
            "size_bytes": len(content),
            "seconds": FILE_SECONDS,
            "files_max": FILES_MAX,
        }
        async with connection_of(self._pool) as connection, connection.transaction():
            await connection.execute(sql.LOCK_FILES, (caller.key_id,))
            row = await (await connection.execute(sql.INSERT_FILE, values)).fetchone()
        if row is None:
            raise Conflict(f"This API key has {FILES_MAX} files; delete some first.")
        return StoredFile(str(values["file_id"]), "batch", name, len(content), *row)

    async def find(self, caller: Caller, credential: str, file_id: str) -> StoredFile | None:
        rows = await self._rows(caller, file_id=file_id)
        return _entry(rows[0], CredentialKey(credential, PURPOSE)) if rows else None

    async def list_of(
        self, caller: Caller, credential: str, *, after: str | None, limit: int, purpose: str | None
    ) -> Sequence[StoredFile]:
        """The newest first."""
        key = CredentialKey(credential, PURPOSE)
        return [_entry(row, key) for row in await self._rows(caller, after=after, limit=limit, purpose=purpose)]

    async def content(self, caller: Caller, credential: str, file_id: str) -> bytes | None:
        key = CredentialKey(credential, PURPOSE)
        found = await self._rows(caller, file_id=file_id)
        if not found:
            return None
        *_, batch_id, of_errors = found[0]
        async with connection_of(self._pool) as connection:
            if batch_id is not None:
                rows = await (await connection.execute(sql.RESULTS, (batch_id, of_errors))).fetchall()
                return b"".join(key.open(result) + b"\n" for (result,) in rows)
            row = await (await connection.execute(sql.FILE_CONTENT, (file_id, caller.key_id))).fetchone()
        return await asyncio.to_thread(key.open, row[0]) if row else None

    async def delete(self, caller: Caller, file_id: str) -> bool:
        if _is_no_text(file_id):
            return False
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.DELETE_FILE, (file_id, caller.key_id))).fetchone()
        return row is not None

    async def _rows(
        self,
        caller: Caller,
        *,
        file_id: str | None = None,
        after: str | None = None,
        limit: int = 1,
        purpose: str | None = None,
    ) -> list[tuple[Any, ...]]:
        if file_id is not None and _is_no_text(file_id):
            return []
        values = {"key_id": caller.key_id, "file_id": file_id, "after": after, "limit": limit, "purpose": purpose}
        async with connection_of(self._pool) as connection:
            return await (await connection.execute(sql.FIND_FILES, values)).fetchall()


def _is_no_text(file_id: str) -> bool:
    """Whether PostgreSQL does not even take it as a text; then no file has that id."""
    return "\0" in file_id


def _entry(row: tuple[Any, ...], key: CredentialKey) -> StoredFile:
    file_id, purpose, sealed_name, size_bytes, created_at, expires_at, batch_id, of_errors = row
    name = _name_of(batch_id, of_errors) if sealed_name is None else key.open(sealed_name).decode()
    return StoredFile(file_id, purpose, name, size_bytes, created_at, expires_at)


def _name_of(batch_id: UUID, of_errors: bool) -> str:
    return f"batch_{batch_id.hex}_{'error' if of_errors else 'output'}.jsonl"
