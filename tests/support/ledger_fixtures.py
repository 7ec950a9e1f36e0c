"""Fixtures over the ledger's database. A test module asks for them with ``pytest_plugins``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator

import psycopg
import pytest

from adapters.postgres.pool import make_async_pool, open_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.gateway_fleet import GatewayFleet
from tests.conftest import database_url
from tests.support.ledger_commands import GATEWAY
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_waiting import Connection, terminate_sessions
from tests.support.ledger_writers import running


@pytest.fixture(scope="session")
def shared_ledger(postgres_server: str, migrated_template: str) -> Generator[str, None, None]:
    """One migrated database for all tests that leave its schema alone; making and dropping one is the slow part."""
    name = f"darkbloom_test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
        yield database_url(postgres_server, name)
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def ledger(shared_ledger: str) -> str:
    """The URL of a ledger that is as empty as on its first day."""
    with psycopg.connect(shared_ledger, autocommit=True) as connection:
        terminate_sessions(connection)
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")  # no trigger guards the log from this
            tables = connection.execute(
                "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' "
                "AND tablename NOT IN ('alembic_version', 'ledger_head')"
            ).fetchall()
            for (table,) in tables:
                connection.execute(f"DELETE FROM {table}")
            connection.execute("UPDATE ledger_head SET position = 0, recorded_at = '2020-01-01T00:00:00Z', stops = 0")
    return shared_ledger


@pytest.fixture
def look(ledger: str) -> Generator[Connection, None, None]:
    """A session of the test's own on the ledger's database."""
    with psycopg.connect(ledger, autocommit=True) as connection:
        yield connection


@pytest.fixture
def writer(ledger: str) -> Generator[LedgerWriter, None, None]:
    with running(ledger) as writer:
        yield writer


@pytest.fixture
def empty_database(postgres_server: str) -> Generator[str, None, None]:
    """The URL of a database without any table."""
    name = f"darkbloom_test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield database_url(postgres_server, name)
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
async def gateway(ledger: str) -> AsyncGenerator[GatewayFleet, None]:
    """The fleet table as the gateway of the tests keeps it."""
    async with make_async_pool(ledger, size_max=3) as pool:
        yield GatewayFleet(pool, lambda: GATEWAY)


@pytest.fixture
def scene(ledger: str, writer: LedgerWriter) -> Generator[SchedulerScene, None, None]:
    with open_pool(ledger, size_max=8) as pool:
        yield SchedulerScene(writer, pool)
