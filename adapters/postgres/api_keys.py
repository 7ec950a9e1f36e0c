"""The keys of an account, as their owner manages them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.credentials import hash_of, new_key
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.errors import Conflict
from domain.key_budgets import KeyLimit
from domain.keys import KEYS_MAX, AccountLimits, KeyEntry, KeySettings, MadeKey


class StoredKeys:
    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], on_revoked: Callable[[str], None] = lambda _: None
    ) -> None:
        """``on_revoked`` is told the id of each key that is revoked here."""
        self._pool = pool
        self._on_revoked = on_revoked

    async def create(self, account_id: str, settings: KeySettings) -> MadeKey:
        """Raises Conflict when the account has as many active keys as it may have."""
        key = new_key()
        limit = settings.spend_limit
        values = {
            "key_hash": hash_of(key.secret),
            "key_id": key.key_id,
            "label": key.label,
            "name": settings.name,
            "account_id": account_id,
            "role": settings.role,
            "scopes": list(settings.scopes),
            "expires_at": settings.expires_at,
            "spend_limit_micro_usd": limit.limit_micro_usd if limit else None,
            "spend_reset": limit.reset if limit else "none",
            "requests_per_minute": settings.requests_per_minute,
            "tokens_per_minute": settings.tokens_per_minute,
            "keys_max": KEYS_MAX,
        }
        async with connection_of(self._pool) as connection, connection.transaction():
            await connection.execute(sql.LOCK_ACCOUNT_KEYS, (account_id,))
            row = await (await connection.execute(sql.CREATE_API_KEY, values)).fetchone()
        if row is None:
            raise Conflict(f"This account has {KEYS_MAX} active keys already; revoke one that nobody needs.")
        return MadeKey(key.secret, KeyEntry(key.key_id, key.label, settings, row[0], None, None))

    async def list_of(self, account_id: str, *, include_revoked: bool) -> Sequence[KeyEntry]:
        """Newest first; without the revoked and expired ones unless they are asked for."""
        values = {"account_id": account_id, "include_revoked": include_revoked}
        async with connection_of(self._pool) as connection:
            rows = await (await connection.execute(sql.ACCOUNT_KEYS, values)).fetchall()
        return [_entry(row) for row in rows]

    async def revoke(self, account_id: str, key_or_id: str) -> bool:
        """Revoke one of the account's own keys; False when it has no such active key."""
        values = {"key": key_or_id, "key_hash": hash_of(key_or_id), "account_id": account_id}
        async with connection_of(self._pool) as connection:
            revoked = await (await connection.execute(sql.REVOKE_API_KEY, values)).fetchone()
        if revoked is not None:
            self._on_revoked(revoked[0])
        return revoked is not None


def set_account_limits(connection: psycopg.Connection[object], account_id: str, limits: AccountLimits) -> None:
    connection.execute(sql.SET_ACCOUNT_LIMITS, (account_id, *limits))


def _entry(row: Sequence[Any]) -> KeyEntry:
    key_id, label, name, role, scopes, expires_at, limit, reset, requests, tokens, created, used, revoked = row
    spend_limit = None if limit is None else KeyLimit(limit, reset)
    settings = KeySettings(name, role, tuple(scopes), expires_at, spend_limit, requests, tokens)
    return KeyEntry(key_id, label, settings, created, used, revoked)
