"""What the roles of the database may do: the running coordinator appends, an auditor reads, neither changes the log.

The owner of the tables runs the migrations and nothing else. Grants are worked out from the tables that are there, so
they are given anew after each migration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from adapters.postgres import sql
from adapters.postgres.migrate import DatabaseUnusable

SECRET_COLUMNS: Mapping[str, frozenset[str]] = {
    "api_keys": frozenset({"key_hash"}),
    "provider_tokens": frozenset({"token_hash"}),
    "replies": frozenset({"sealed"}),
    "identities": frozenset({"subject"}),
    "personal_details": frozenset({"email", "wallet_address", "wallet_id"}),
    "sessions": frozenset({"refresh_hash", "spent_hash"}),
    "sign_in_codes": frozenset({"email", "challenge_hash", "code_hash"}),
    "device_codes": frozenset({"device_hash", "user_code_hash"}),
    "files": frozenset({"sealed", "sealed_name"}),
    "batches": frozenset({"wrapped_key", "sealed_metadata"}),
    "batch_lines": frozenset({"sealed", "draft", "result"}),
}
"""What an auditor has no business to see: credentials, and who the people behind the accounts are."""

_OTHER_GRANTS: Mapping[str, str] = {
    "alembic_version": sql.GRANT_READ,
    "ledger_head": sql.GRANT_MOVE,
    "transparency_tiles": sql.GRANT_GROW,
    "checkpoints": sql.GRANT_APPEND,
    "checkpoint_keys": sql.GRANT_GROW,
}
"""The tables on which a coordinator needs less than to write them freely."""

Connection = psycopg.Connection[tuple[Any, ...]]


class RoleUnusable(DatabaseUnusable):
    """A role cannot be given privileges."""


def grant(dsn: str, *, application: str | None = None, auditor: str | None = None) -> None:
    """Give existing roles exactly what they need on the tables that are there now.

    Raises:
        RoleUnusable: there is no such role, or privileges do not bind it.
    """
    with psycopg.connect(dsn) as connection:
        if application is not None:
            _grant_application(connection, application)
        if auditor is not None:
            _grant_auditor(connection, auditor)


def _grant_application(connection: Connection, role: str) -> None:
    _begin(connection, role)
    for table, _, is_append_only in connection.execute(sql.TABLES_TO_GRANT).fetchall():
        statement = sql.GRANT_APPEND if is_append_only else _OTHER_GRANTS.get(table, sql.GRANT_WRITE)
        _run(connection, statement, role, table)
    _run(connection, sql.GRANT_SEQUENCES, role)


def _grant_auditor(connection: Connection, role: str) -> None:
    _begin(connection, role)
    for table, columns, _ in connection.execute(sql.TABLES_TO_GRANT).fetchall():
        secret = SECRET_COLUMNS.get(table)
        if secret is None:
            _run(connection, sql.GRANT_READ, role, table)
        else:
            _run(connection, sql.GRANT_READ_COLUMNS, role, table, [name for name in columns if name not in secret])


def _begin(connection: Connection, role: str) -> None:
    facts = connection.execute(sql.ROLE_FACTS, (role,)).fetchone()
    if facts is None:
        raise RoleUnusable(f"there is no role {role!r}; make it with CREATE ROLE … LOGIN first")
    if facts[0]:
        raise RoleUnusable(
            f"the role {role!r} is a superuser or owns the tables, so nothing could be kept from it; use another role"
        )
    _run(connection, sql.REVOKE_ALL, role)


def _run(connection: Connection, statement: str, role: str, table: str = "", columns: list[str] | None = None) -> None:
    connection.execute(
        SQL(statement).format(
            role=Identifier(role),
            table=Identifier(table or "events"),
            columns=SQL(", ").join(Identifier(name) for name in columns or ()),
        )
    )
