"""A database with a role for the running processes and one for an auditor."""

from __future__ import annotations

import secrets
from collections.abc import Generator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from adapters.postgres import roles
from tests.support.owned import Owned


@pytest.fixture
def owned(postgres_server: str, database: str) -> Generator[Owned, None, None]:
    """A database and the URLs that an application's and an auditor's role have for it, with their grants."""
    names = [f"darkbloom_test_{kind}_{secrets.token_hex(4)}" for kind in ("app", "auditor")]
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        for name in names:
            admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'password'").format(Identifier(name)))
        roles.grant(database, application=names[0], auditor=names[1])
        urls = [make_conninfo(database, user=name, password="password") for name in names]
        yield Owned(database, *urls)
        with psycopg.connect(database, autocommit=True) as inside:
            for name in names:
                inside.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
        for name in names:
            admin.execute(SQL("DROP ROLE {}").format(Identifier(name)))
