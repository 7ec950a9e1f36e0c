"""What breaks in a running market is survived by every request and by the books, and heals by itself."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest

from tests.chaos.fleet import FAULTS, Fault, Market, suffer
from tests.conftest import POSTGRES_URL, database_url, missing_service


@pytest.fixture(scope="module")
def market(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, migrated_template: str
) -> Generator[Market, None, None]:
    if postgres_server != POSTGRES_URL:
        missing_service(f"PostgreSQL at {POSTGRES_URL}")
    folder = tmp_path_factory.mktemp("market")
    name = f"darkbloom_test_{folder.name}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
        with Market(folder, database_url(postgres_server, name)).open() as running:
            yield running
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_request_ends_once_and_the_market_heals(market: Market, fault: Fault) -> None:
    suffer(market, fault)
