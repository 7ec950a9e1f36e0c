"""Migrations on a real server: from nothing to this build's schema, one process at a time, all or nothing."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from adapters.postgres import migrate
from adapters.postgres.migrate import DatabaseUnreachable, SchemaTooNew, SchemaTooOld, ServerTooOld
from tests.support.ledger_commands import account, grant
from tests.support.ledger_tables import assert_books_are_sound, balance_of
from tests.support.ledger_waiting import Connection, in_thread, until, until_sessions_wait
from tests.support.ledger_writers import running

pytest_plugins = ["tests.support.ledger_fixtures"]

TABLES = {
    "alembic_version",
    "api_keys",
    "claims",
    "earning_totals",
    "events",
    "fleet",
    "gateways",
    "journal_lines",
    "leaderboard_daily",
    "ledger_head",
    "ledger_lines",
    "open_requests",
    "projection_tracking",
    "provider_earnings",
    "provider_tokens",
    "sub_account_balances",
    "trial_balance",
    "usage_entries",
    "usage_minute",
    "usage_totals",
    "waiters",
    "wallet_balances",
}


@pytest.fixture
def inside(empty_database: str) -> Generator[Connection, None, None]:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


def catalogue(inside: Connection) -> list[tuple[Any, ...]]:
    """Every table with its columns, and every index and constraint."""
    columns = inside.execute(
        "SELECT table_name::text, column_name::text, data_type::text, column_default::text, is_nullable::text "
        "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    ).fetchall()
    indexes = inside.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1").fetchall()
    checks = inside.execute(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
    ).fetchall()
    return [*columns, *indexes, *checks]


def tables(inside: Connection) -> set[str]:
    rows = inside.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows}


def until_lock_is_free(inside: Connection) -> None:
    """A session that was closed ends a moment later on the server, and its locks with it."""

    def is_free() -> bool:
        return inside.execute("SELECT pg_try_advisory_lock(%s)", (migrate._MIGRATION_LOCK,)).fetchone() == (True,)

    until(is_free, "the lock of the migrations is free")


def test_an_empty_database_becomes_a_ledger_that_works(empty_database: str, inside: Connection) -> None:
    migrate.upgrade(empty_database)

    migrate.require_current(empty_database)
    assert tables(inside) >= TABLES
    assert inside.execute("SELECT count(*), min(position) FROM ledger_head").fetchone() == (1, 0)
    consumer = account()
    with running(empty_database) as writer:
        writer.execute(grant(consumer, 5))
    assert balance_of(inside, consumer) == 5
    assert_books_are_sound(inside)


def test_an_upgrade_of_a_current_database_changes_nothing(empty_database: str, inside: Connection) -> None:
    migrate.upgrade(empty_database)
    before = catalogue(inside)
    with running(empty_database) as writer:
        writer.execute(grant("acct_kept", 5))

    migrate.upgrade(empty_database)

    assert catalogue(inside) == before
    assert balance_of(inside, "acct_kept") == 5


def test_the_scheduler_s_tables_are_unlogged_and_nothing_else_is(empty_database: str, inside: Connection) -> None:
    """Money in an unlogged table would be gone after a crash."""
    migrate.upgrade(empty_database)

    rows = inside.execute("SELECT relname FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'").fetchall()
    assert {row[0] for row in rows} == {"fleet", "fleet_models", "claims", "waiters", "model_demand"}


def test_upgrades_at_the_same_time_take_turns_and_all_succeed(empty_database: str, inside: Connection) -> None:
    # Given three processes that all come to the lock before any of them has looked at the schema
    inside.execute("SELECT pg_advisory_lock(%s)", (migrate._MIGRATION_LOCK,))
    upgrades = [in_thread(lambda: migrate.upgrade(empty_database)) for _ in range(3)]
    until_sessions_wait(inside, 3)

    inside.execute("SELECT pg_advisory_unlock(%s)", (migrate._MIGRATION_LOCK,))

    assert [upgrade.result(60) for upgrade in upgrades] == [None, None, None]
    assert tables(inside) >= TABLES
    assert inside.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    migrate.require_current(empty_database)


def test_an_upgrade_leaves_no_lock_behind(empty_database: str, inside: Connection) -> None:
    migrate.upgrade(empty_database)

    until_lock_is_free(inside)


@pytest.mark.parametrize("check", [migrate.upgrade, migrate.require_current], ids=["upgrade", "require_current"])
@pytest.mark.parametrize("how", ["instead of ours", "beside ours"])
def test_a_database_of_a_newer_build_is_refused_and_stays_as_it_is(
    empty_database: str, inside: Connection, check: Any, how: str
) -> None:
    migrate.upgrade(empty_database)
    if how == "instead of ours":
        inside.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
    else:
        inside.execute("INSERT INTO alembic_version VALUES ('9999_from_the_future')")
    inside.execute("ALTER TABLE events ADD COLUMN from_the_future text")
    before = [*catalogue(inside), *inside.execute("SELECT version_num FROM alembic_version").fetchall()]

    with pytest.raises(SchemaTooNew):
        check(empty_database)

    assert [*catalogue(inside), *inside.execute("SELECT version_num FROM alembic_version").fetchall()] == before
    until_lock_is_free(inside)


def test_an_empty_database_is_not_current_and_looking_changes_nothing(empty_database: str, inside: Connection) -> None:
    with pytest.raises(SchemaTooOld):
        migrate.require_current(empty_database)

    assert tables(inside) == set()


def test_a_migration_that_fails_leaves_nothing_behind_and_can_be_repeated(
    empty_database: str, inside: Connection
) -> None:
    inside.execute("CREATE TABLE waiters (whose text)")  # stands in the way of the last part of the migration

    with pytest.raises(ProgrammingError):
        migrate.upgrade(empty_database)

    assert tables(inside) == {"waiters"}
    inside.execute("DROP TABLE waiters")
    migrate.upgrade(empty_database)
    migrate.require_current(empty_database)


def test_a_server_that_does_not_answer_is_named_as_the_reason() -> None:
    nobody = "postgresql://somebody:s3cret@127.0.0.1:1/nowhere"

    for check in (migrate.upgrade, migrate.require_current):
        with pytest.raises(DatabaseUnreachable) as caught:
            check(nobody)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql//somebody:s3cret@127.0.0.1/darkbloom",
        "postgresql://somebody:pass@s3cret@127.0.0.1/darkbloom",
        "postgresql://somebody:s3cret/more@127.0.0.1/darkbloom",
        "postgresql://somebody:%s3cret@127.0.0.1/darkbloom",
        "host=127.0.0.1 password=pass s3cret",
    ],
)
def test_a_malformed_address_is_refused_without_repeating_its_password(address: str) -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        migrate.upgrade(address)

    assert "DARKBLOOM_DATABASE_URL" in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_server_older_than_the_oldest_supported_is_refused(
    empty_database: str, inside: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "SERVER_VERSION_MIN", 10_000_000)

    for check in (migrate.upgrade, migrate.require_current):
        with pytest.raises(ServerTooOld):
            check(empty_database)
    assert tables(inside) == set()


def test_balances_below_zero_are_refused_by_the_table_itself(empty_database: str, inside: Connection) -> None:
    migrate.upgrade(empty_database)

    for column in ("balance_micro_usd", "withdrawable_micro_usd", "held_micro_usd"):
        amounts = {"balance_micro_usd": 0, "withdrawable_micro_usd": 0, "held_micro_usd": 0} | {column: -1}
        with pytest.raises(psycopg.errors.CheckViolation):
            inside.execute("INSERT INTO wallet_balances VALUES ('acct', 1, %s, %s, %s)", list(amounts.values()))
