"""Lists that are sent packed arrive as what they are."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres.arrays import pack_lists

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
COLUMNS = {
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "uuid": st.uuids(),
    "text": TEXTS,
    "bytea": st.binary(),
    "timestamptz": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
}


@pytest.fixture(scope="module")
def connection(postgres_server: str) -> Generator[psycopg.Connection[Any], None, None]:
    with psycopg.connect(postgres_server, autocommit=True) as opened:
        opened.execute("SET timezone = 'UTC'")
        pack_lists(opened)
        yield opened


@pytest.mark.parametrize("kind", list(COLUMNS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_list_comes_back_as_it_went(connection: psycopg.Connection[Any], kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(COLUMNS[kind], max_size=40))
    row = connection.execute(f"SELECT %s::{kind}[]".encode(), (values,), prepare=True).fetchone()
    assert row == (values,)


def test_what_is_no_packed_type_goes_the_drivers_own_way(connection: psycopg.Connection[Any]) -> None:
    sent = ([1.5, None], [True, False], [[1, 2], [3, 4]], [None, "x"])
    row = connection.execute("SELECT %s::float8[], %s::bool[], %s::int[], %s::text[]", sent).fetchone()
    assert row == sent


def test_numbers_fit_narrower_columns_and_texts_that_look_like_ids_become_ids(
    connection: psycopg.Connection[Any],
) -> None:
    one = UUID(int=7)
    assert connection.execute("SELECT %s::int[], %s::text[]::uuid[]", ([1, -2], [str(one)])).fetchone() == (
        [1, -2],
        [one],
    )
