"""API keys and provider tokens. Only their hashes are stored; the secrets are shown once, when they are made."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.key_budgets import KeyLimit
from domain.keys import AccountLimits, Caller, KeySettings, Role, Scope, default_scopes
from domain.protocol import PROVIDER_TOKEN_PREFIX

API_KEY_PREFIX = "eigeninference-"


class NewKey(NamedTuple):
    """``secret`` is what the caller keeps; ``key_id`` and ``label`` may be shown."""

    secret: str
    key_id: str
    label: str


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key() -> NewKey:
    random = secrets.token_hex(32)
    return NewKey(
        secret=API_KEY_PREFIX + random,
        key_id=f"key_{secrets.token_hex(8)}",
        label=f"{API_KEY_PREFIX}{random[:4]}…{random[-4:]}",
    )


def create_api_key(
    connection: psycopg.Connection[object],
    account_id: str,
    name: str,
    role: Role = "consumer",
    scopes: Sequence[Scope] = (),
) -> NewKey:
    """Without scopes it gets those that are usual for its role."""
    key = new_key()
    values = (hash_of(key.secret), key.key_id, key.label, name, account_id, role, list(scopes or default_scopes(role)))
    connection.execute(sql.INSERT_API_KEY, values)
    return key


def find_api_key(connection: psycopg.Connection[tuple[Any, ...]], token: str) -> Caller | None:
    """The active key of a secret, for commands that act in somebody's name."""
    row = connection.execute(sql.FIND_API_KEY, (hash_of(token),)).fetchone()
    return _caller(row) if row else None


def revoke_api_key(connection: psycopg.Connection[object], key_or_id: str) -> bool:
    """Revoke a key by its secret or its id; False when there is no such active key."""
    key = {"key": key_or_id, "key_hash": hash_of(key_or_id), "account_id": None}
    return connection.execute(sql.REVOKE_API_KEY, key).fetchone() is not None


def new_provider_token() -> str:
    return PROVIDER_TOKEN_PREFIX + secrets.token_hex(32)


def create_provider_token(connection: psycopg.Connection[object], account_id: str) -> str:
    token = new_provider_token()
    connection.execute(sql.INSERT_PROVIDER_TOKEN, (hash_of(token), account_id, ""))
    return token


class StoredCredentials:
    """Looks credentials up. Nothing is remembered here, so a revocation holds at once."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def find_api_key(self, token: str) -> Caller | None:
        """The active key of a secret; that it was used is noted."""
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.FIND_API_KEY, (hash_of(token),), prepare=True)).fetchone()
            if row is None:
                return None
            *_, use_is_news = row
            caller = _caller(row)
            if use_is_news:
                await connection.execute(sql.NOTE_KEY_USE, (caller.key_id,))
        return caller

    async def find_key_by_id(self, key_id: str) -> Caller | None:
        """The active key of an id, for work that was asked for before."""
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.FIND_API_KEY_BY_ID, (key_id,))).fetchone()
        return _caller(row) if row else None

    async def find_provider_token(self, token: str) -> str | None:
        if not token:
            return None
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.FIND_PROVIDER_TOKEN, (hash_of(token),))).fetchone()
        return str(row[0]) if row else None


def _caller(row: tuple[Any, ...]) -> Caller:
    account_id, key_id, role, scopes, expires_at, limit, reset, requests, tokens, *account_limits, _ = row
    settings = KeySettings(
        role=role,
        scopes=tuple(scopes),
        expires_at=expires_at,
        spend_limit=None if limit is None else KeyLimit(limit, reset),
        requests_per_minute=requests,
        tokens_per_minute=tokens,
    )
    return Caller(account_id, key_id, settings, AccountLimits(*account_limits))
