"""Remembers for a few seconds who a key stands for, so that a busy key is not looked up for each of its requests.

A revocation is heard of at once; the seconds bound what a missed notification can do (consumer API, section 3.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from adapters.postgres.credentials import StoredCredentials, hash_of
from domain.keys import Caller

RECENT_SECONDS = 5.0
RECENT_MAX = 10_000


class _Found(NamedTuple):
    caller: Caller
    until: float


class RecentCallers:
    """Credentials, of which keys are remembered. Only what was found is: a key that is made works at once."""

    def __init__(self, stored: StoredCredentials, clock: Callable[[], float] = time.monotonic) -> None:
        self._stored = stored
        self._clock = clock
        self._found: dict[str, _Found] = {}
        self._revocations = 0

    async def find_api_key(self, token: str) -> Caller | None:
        key_hash = hash_of(token)
        found = self._found.get(key_hash)
        if found is not None and found.until > self._clock() and not _has_expired(found.caller):
            return found.caller
        before, until = self._revocations, self._clock() + RECENT_SECONDS
        caller = await self._stored.find_api_key(token)
        if caller is None:
            self._found.pop(key_hash, None)
        elif before == self._revocations:  # else it may be this key that was revoked while it was looked up
            if len(self._found) >= RECENT_MAX:
                self._found.clear()
            self._found[key_hash] = _Found(caller, until)
        return caller

    async def find_key_by_id(self, key_id: str) -> Caller | None:
        return await self._stored.find_key_by_id(key_id)

    async def find_provider_token(self, token: str) -> str | None:
        return await self._stored.find_provider_token(token)

    def forget(self, key_id: str) -> None:
        """The key was revoked."""
        self._revocations += 1
        self._found = {key_hash: found for key_hash, found in self._found.items() if found.caller.key_id != key_id}


def _has_expired(caller: Caller) -> bool:
    return caller.key.expires_at is not None and caller.key.expires_at <= datetime.now(UTC)
