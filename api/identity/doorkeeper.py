"""Tells credentials apart and finds whom each stands for (consumer API, section 3)."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from api.identity.accounts import ensure_open
from api.identity.ports import DetailsSource, People, TokenVerifier
from api.ports import Ledger
from domain.errors import (
    AccountLookupFailed,
    AuthenticationFailed,
    LedgerUnavailable,
    NotConfigured,
    ServiceUnavailable,
)
from domain.keys import ADMIN, Caller, signed_in
from domain.people import Details, Person, SessionClaims


class KeyStore(Protocol):
    async def find_api_key(self, token: str) -> Caller | None: ...

    async def find_key_by_id(self, key_id: str) -> Caller | None: ...

    async def find_provider_token(self, token: str) -> str | None: ...


class Sessions(NamedTuple):
    """How sessions are checked. ``sources`` tells of new people, by the name of the issuer."""

    tokens: TokenVerifier
    people: People
    ledger: Ledger
    sources: Mapping[str, DetailsSource] = {}


class Doorkeeper:
    """``admin_emails`` are in lower case; an empty ``admin_key`` is none."""

    def __init__(
        self,
        keys: KeyStore,
        *,
        sessions: Sessions | None = None,
        admin_key: str = "",
        admin_emails: Collection[str] = (),
    ) -> None:
        self._keys = keys
        self._sessions = sessions
        self._admin_key = admin_key.encode()
        self._admin_emails = frozenset(admin_emails)

    @property
    def takes_sessions(self) -> bool:
        return self._sessions is not None

    async def find_session(self, token: str) -> Caller:
        """Raises AuthenticationFailed, and AccountLookupFailed."""
        _, person = await self.session_of(token)
        return signed_in(person.account_id, person.limits, is_admin=self.is_admin(person.email))

    async def session_of(self, token: str) -> tuple[SessionClaims, Person]:
        """The session itself, for ending it. Raises AuthenticationFailed, and AccountLookupFailed."""
        if self._sessions is None:
            raise NotConfigured("Nobody can sign in here.")
        claims = self._sessions.tokens.verify(token)
        try:
            found = await self._sessions.people.find(claims)
            if not found.is_live:
                raise AuthenticationFailed("This session was ended; sign in again.")
            person = found.person or await self._welcome(self._sessions, claims)
            await ensure_open(person, self._sessions.people, self._sessions.ledger)
        except (ServiceUnavailable, LedgerUnavailable) as error:
            raise AccountLookupFailed from error
        return claims, person

    def is_admin(self, email: str) -> bool:
        return bool(email) and email in self._admin_emails

    def find_admin(self, token: str) -> Caller | None:
        is_it = hmac.compare_digest(token.encode(), self._admin_key)
        return ADMIN if is_it and self._admin_key else None

    async def find_api_key(self, token: str) -> Caller | None:
        return await self._keys.find_api_key(token)

    async def find_key_by_id(self, key_id: str) -> Caller | None:
        return await self._keys.find_key_by_id(key_id)

    async def find_provider_token(self, token: str) -> str | None:
        return await self._keys.find_provider_token(token)

    async def _welcome(self, sessions: Sessions, claims: SessionClaims) -> Person:
        """Somebody new. Of those who come at the same moment with one subject, all get the same account."""
        if claims.ours:
            raise AuthenticationFailed("The account of this session is gone.")
        source = sessions.sources.get(claims.issuer)
        details = await source.details_of(claims.subject) if source else Details()
        return await sessions.people.add(claims.issuer, claims.subject, details)
