"""Fixtures that many tests share: a database of one's own, and the services of the machine."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings

from adapters.postgres import migrate
from adapters.postgres.embedded import EmbeddedPostgres

REQUIRE_SERVICES = os.environ.get("DARKBLOOM_TEST_REQUIRE_SERVICES") == "1"
POSTGRES_URL = os.environ.get("DARKBLOOM_TEST_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
RABBITMQ_URL = os.environ.get("DARKBLOOM_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")

# Where a change is judged, its verdict depends on the change alone: the examples are the same each time.
hypothesis_settings.register_profile("default", deadline=None, print_blob=True, derandomize=REQUIRE_SERVICES)
hypothesis_settings.load_profile("default")


def missing_service(what: str) -> None:
    """Skip the test, or fail it where every service must be there."""
    if REQUIRE_SERVICES:
        pytest.fail(f"{what} is required here and does not answer")
    pytest.skip(f"{what} does not answer")


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str, None, None]:
    """A server to make databases on: the machine's own, else an embedded one."""
    try:
        psycopg.connect(POSTGRES_URL, connect_timeout=3).close()
    except psycopg.OperationalError:
        if REQUIRE_SERVICES:
            pytest.fail(f"PostgreSQL at {POSTGRES_URL} is required here and does not answer")
        with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres.start(Path(folder) / "data") as server:
            yield server.dsn
    else:
        yield POSTGRES_URL


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> Generator[str, None, None]:
    """The name of a migrated database to copy from."""
    name = f"darkbloom_test_template_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        migrate.upgrade(database_url(postgres_server, name))
        yield name
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(postgres_server: str, migrated_template: str) -> Generator[str, None, None]:
    """The URL of a fresh, migrated database."""
    name = f"darkbloom_test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
        yield database_url(postgres_server, name)
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def database_url(server: str, name: str) -> str:
    """The server's URL with another database in it."""
    base, _, query = server.partition("?")
    return base.rpartition("/")[0] + f"/{name}" + (f"?{query}" if query else "")
