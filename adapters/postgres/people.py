"""People, and the sessions of those who signed in. Personal data stands in a table of its own, and can be deleted."""

from __future__ import annotations

import secrets
from uuid import uuid4

from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.credentials import hash_of
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.keys import AccountLimits
from domain.people import Details, FoundSession, OpenedSession, Person, SessionClaims

REFRESH_TOKEN_PREFIX = "darkbloom-rt-"


class StoredPeople:
    """``own_issuer`` names the sessions that are opened here."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], own_issuer: str) -> None:
        self._pool = pool
        self._own_issuer = own_issuer

    async def find(self, claims: SessionClaims) -> FoundSession:
        values = {"issuer": claims.issuer, "subject": claims.subject, "session_id": claims.session_id}
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.FIND_SESSION, values, prepare=True)).fetchone()
        assert row is not None
        account_id, email, is_open, per_second, burst, tokens, stands, is_revoked = row
        person = account_id and Person(account_id, email, is_open, AccountLimits(per_second, burst, tokens))
        return FoundSession(person or None, not is_revoked and (stands or not claims.ours))

    async def add(self, issuer: str, subject: str, details: Details) -> Person:
        """The person of a subject, made with these details when it is new."""
        account_id = str(uuid4())
        async with connection_of(self._pool) as connection, connection.transaction():
            added = await (await connection.execute(sql.ADD_IDENTITY, (issuer, subject, account_id))).fetchone()
            if added is None:
                row = await (await connection.execute(sql.IDENTITY_OF, (issuer, subject))).fetchone()
                assert row is not None
                return Person(row[0], is_open=row[1])
            await connection.execute(sql.ADD_DETAILS, (account_id, *details, False))
        return Person(account_id, details.email)

    async def at_address(self, email: str) -> tuple[Person, str]:
        """The person who signs in with codes at this address, made when it is new, and the subject of the tokens."""
        async with connection_of(self._pool) as connection, connection.transaction():
            await connection.execute(sql.LOCK_ADDRESS, (email,))
            row = await (await connection.execute(sql.PERSON_AT, (email,))).fetchone()
            if row is not None:
                account_id, subject, is_open = row
                return Person(account_id, email, is_open), subject
            account_id, subject = str(uuid4()), f"did:darkbloom:{uuid4()}"
            await connection.execute(sql.ADD_IDENTITY, (self._own_issuer, subject, account_id))
            await connection.execute(sql.ADD_DETAILS, (account_id, email, "", "", True))
        return Person(account_id, email), subject

    async def mark_open(self, account_id: str) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.MARK_OPEN, (account_id,))

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def open_session(self, account_id: str, seconds: float) -> tuple[str, str]:
        """A new session's id, and the token that refreshes it."""
        session_id, refresh_token = f"ses_{secrets.token_hex(16)}", _refresh_token()
        values = {
            "session_id": session_id,
            "account_id": account_id,
            "refresh_hash": hash_of(refresh_token),
            "seconds": seconds,
        }
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.OPEN_SESSION, values)
        return session_id, refresh_token

    async def refresh(self, refresh_token: str, idle_seconds: float) -> tuple[OpenedSession, str] | None:
        """The session of a refresh token and its next one; None when it has ended. A spent token ends its session."""
        next_token = _refresh_token()
        values = {
            "refresh_hash": hash_of(refresh_token),
            "next_hash": hash_of(next_token),
            "idle_seconds": idle_seconds,
        }
        async with connection_of(self._pool) as connection:
            row = await (await connection.execute(sql.REFRESH_SESSION, values)).fetchone()
            if row is not None:
                return OpenedSession(*row), next_token
            await connection.execute(sql.REVOKE_BY_SPENT_HASH, (values["refresh_hash"],))
        return None

    async def sign_out(self, claims: SessionClaims, account_id: str) -> None:
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.REVOKE_SESSION, (claims.session_id, account_id, claims.expires_at))

    async def sign_out_everywhere(self, account_id: str) -> None:
        """End all sessions that were opened here."""
        async with connection_of(self._pool) as connection:
            await connection.execute(sql.REVOKE_SESSIONS_OF, (account_id,))


def _refresh_token() -> str:
    return REFRESH_TOKEN_PREFIX + secrets.token_hex(32)
