"""The database itself keeps the log append-only, and its roles can do what they need and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.sql import SQL, Identifier

from adapters.postgres import credentials, migrate, roles, sql
from adapters.postgres.credentials import StoredCredentials
from adapters.postgres.pool import make_async_pool, open_pool
from adapters.postgres.roles import RoleUnusable
from adapters.scheduler.fleet import SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from adapters.scheduler.leases import GatewayLease
from api.cli import main
from projections.doctor import examine
from projections.earnings import Earnings
from projections.journal import JournalLines
from projections.runner import ProjectionRunner
from tests.support.busy_day import run_day
from tests.support.examples import snapshot
from tests.support.ledger_commands import account, admit, grant
from tests.support.ledger_machines import job
from tests.support.ledger_tables import assert_books_are_sound, log_of
from tests.support.ledger_waiting import Connection
from tests.support.ledger_writers import running
from tests.support.owned import Owned
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures", "tests.support.role_fixtures"]

CHANGES = (
    "UPDATE events SET state = state",
    "UPDATE events SET state = '' WHERE position = 1",
    "DELETE FROM events WHERE position = 1",
    "DELETE FROM events WHERE false",
    "TRUNCATE events",
    "INSERT INTO events SELECT * FROM events ON CONFLICT (position) DO UPDATE SET state = ''",
)


@pytest.mark.parametrize("change", CHANGES)
def test_not_even_a_superuser_changes_an_event_by_accident(ledger: str, look: Connection, change: str) -> None:
    with running(ledger) as writer:
        writer.execute(grant(account(), 1))
    before = log_of(look)

    with pytest.raises(psycopg.errors.RestrictViolation, match="events is append-only"):
        look.execute(change)

    assert log_of(look) == before


def test_a_later_table_becomes_append_only_with_one_statement(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as inside:
        inside.execute("CREATE TABLE leaves (position bigint PRIMARY KEY)")
        inside.execute("SELECT keep_append_only('leaves')")
        inside.execute("INSERT INTO leaves VALUES (1)")
        with pytest.raises(psycopg.errors.RestrictViolation, match="leaves is append-only; TRUNCATE is refused"):
            inside.execute("TRUNCATE leaves")


# --- roles -----------------------------------------------------------------------------------------------------------


def test_a_coordinator_does_all_its_work_as_the_application_role(owned: Owned) -> None:
    owner, application, _ = owned
    migrate.require_current(application)
    with running(application) as writer:
        run_day(writer)
        ProjectionRunner(application, [Earnings(), JournalLines()]).catch_up()
        asyncio.run(_serve(application))
        with psycopg.connect(application, autocommit=True) as connection:
            key = credentials.create_api_key(connection, "ada", "laptop")
            assert credentials.revoke_api_key(connection, key.key_id)
            assert credentials.create_provider_token(connection, "dan")
    with psycopg.connect(owner, autocommit=True) as look:
        assert_books_are_sound(look)


async def _serve(url: str) -> None:
    """Leases, the fleet, claims and waiters, and looking credentials up."""

    async def nothing() -> None: ...

    async with make_async_pool(url, size_max=2) as pool:
        lease = GatewayLease(
            pool, "http://127.0.0.1", seconds=30, renew_seconds=10, on_lost=lambda: None, on_renamed=nothing
        )
        await lease.end_all()
        await lease.take(lease.gateway_id)
        assert await lease._renewed()
        fleet = GatewayFleet(pool, lambda: lease.gateway_id)
        machine = snapshot(session_id=str(uuid4()), gateway_id=str(lease.gateway_id))
        await fleet.announce(machine, routable=True)
        await asyncio.to_thread(_schedule, url, lease.gateway_id, machine.session_id)
        await fleet.withdraw(machine.session_id)
        assert await StoredCredentials(pool).find_api_key("eigeninference-unknown") is None
        assert await StoredCredentials(pool).find_provider_token("eigeninference-pt-unknown") is None
        await lease.end()


def _schedule(url: str, gateway_id: UUID, session_id: str) -> None:
    with open_pool(url, size_max=1) as pool:
        fleet = SchedulerFleet(pool)
        wanted = job(uuid4(), reply_to=gateway_id)
        assert fleet.claim(wanted, session_id, seconds=60)
        fleet.park(wanted, seconds=60, depth_max=10)
        fleet.release(wanted.request_id, wanted.attempt)
        fleet.leave_queue(wanted.request_id)
        fleet.sweep()
        with pool.connection() as connection:
            connection.execute(sql.ABANDONED_REQUESTS, (30, 10))
            connection.execute(sql.DROP_ENDED_GATEWAYS)


@pytest.mark.parametrize(
    "change",
    [
        *CHANGES,
        "ALTER TABLE events DISABLE TRIGGER append_only",
        "ALTER TABLE events ADD COLUMN more text",
        "DROP TABLE events",
        "SET session_replication_role = replica",
        "CREATE TABLE mine (id int)",
        "DELETE FROM ledger_head",
        "INSERT INTO ledger_head VALUES (true, 0, now())",
        "UPDATE alembic_version SET version_num = '0000'",
    ],
)
def test_the_application_role_cannot_touch_the_log_nor_its_guard(owned: Owned, change: str) -> None:
    _, application, _ = owned
    with running(application) as writer:
        writer.execute(grant("ada", 1))
    with psycopg.connect(application, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(change)


def tables_of(url: str) -> Sequence[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]


def test_an_auditor_reads_every_table_and_the_doctor_works_for_it(owned: Owned) -> None:
    _, application, auditor = owned
    with running(application) as writer:
        run_day(writer)
    ProjectionRunner(application, [Earnings(), JournalLines()]).catch_up()

    migrate.require_current(auditor)
    with psycopg.connect(auditor, autocommit=True) as connection:
        for table in set(tables_of(auditor)) - roles.SECRET_COLUMNS.keys():
            connection.execute(SQL("SELECT * FROM {} LIMIT 1").format(Identifier(table)))
        assert examine(connection).healthy


def test_an_auditor_writes_nothing(owned: Owned) -> None:
    _, application, auditor = owned
    with running(application) as writer:
        run_day(writer)
    with psycopg.connect(auditor, autocommit=True) as connection:
        for table in tables_of(auditor):
            for change in ("DELETE FROM {}", "TRUNCATE {}", "INSERT INTO {} DEFAULT VALUES"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(SQL(change).format(Identifier(table)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE wallet_balances SET balance_micro_usd = 0")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(sql.LOCK_HEAD)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE mine (id int)")


def test_an_auditor_sees_whose_keys_there_are_and_no_hash_of_any(owned: Owned) -> None:
    _, application, auditor = owned
    with psycopg.connect(application, autocommit=True) as connection:
        key = credentials.create_api_key(connection, "ada", "laptop")
        credentials.create_provider_token(connection, "dan")
    with psycopg.connect(auditor, autocommit=True) as connection:
        assert connection.execute("SELECT key_id, account_id FROM api_keys").fetchall() == [(key.key_id, "ada")]
        assert connection.execute("SELECT account_id FROM provider_tokens").fetchall() == [("dan",)]
        for statement in (
            "SELECT * FROM api_keys",
            "SELECT key_hash FROM api_keys",
            "SELECT key_id FROM api_keys WHERE key_hash > ''",
            "SELECT count(*) FROM api_keys GROUP BY key_hash",
            "SELECT * FROM provider_tokens",
            "SELECT token_hash FROM provider_tokens",
            "SELECT sealed FROM replies",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


NO_SECRETS = {
    ("batches", "consumer_key"),
    ("checkpoint_keys", "verifier_key"),
    ("journal_lines", "entry_key"),
    ("provider_earnings", "provider_key"),
}
"""Columns that look like secrets and are none: public keys, and the business keys of entries."""


def test_no_column_that_holds_a_hash_of_a_secret_or_sealed_content_is_forgotten(database: str) -> None:
    with psycopg.connect(database) as connection:
        found = connection.execute(
            "SELECT table_name, column_name, column_name ~ '_hash$|password|secret$|sealed|email|_key$' "
            "FROM information_schema.columns WHERE table_schema = 'public'"
        ).fetchall()
    there = {(table, column) for table, column, _ in found}
    suspicious = {(table, column) for table, column, looks_secret in found if looks_secret}
    secret = {(table, column) for table, columns in roles.SECRET_COLUMNS.items() for column in columns}
    assert secret <= there
    assert suspicious - secret == NO_SECRETS


def test_grants_follow_tables_that_come_later_and_are_given_as_often_as_one_likes(
    owned: Owned,
) -> None:
    owner, application, _ = owned
    name = psycopg.conninfo.conninfo_to_dict(application)["user"]
    with psycopg.connect(owner, autocommit=True) as inside:
        inside.execute("CREATE TABLE leaves (position bigint PRIMARY KEY)")
        inside.execute("SELECT keep_append_only('leaves')")
    result = CliRunner().invoke(
        main, ["migrate", "--application-role", str(name)], env={"DARKBLOOM_DATABASE_URL": owner}
    )

    assert result.exit_code == 0, result.output
    with psycopg.connect(application, autocommit=True) as connection:
        connection.execute("INSERT INTO leaves VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM leaves")


@pytest.mark.parametrize("option", ["--application-role", "--auditor-role"])
@pytest.mark.parametrize(("name", "says"), [("nobody_of_that_name", "there is no role"), ("", "is a superuser")])
def test_a_role_that_cannot_be_bound_is_refused_in_one_line(database: str, option: str, name: str, says: str) -> None:
    user = name or str(psycopg.conninfo.conninfo_to_dict(database)["user"])
    result = CliRunner().invoke(main, ["migrate", option, user], env={"DARKBLOOM_DATABASE_URL": database})

    assert result.exit_code == 1
    assert says in result.output


def test_the_owner_of_the_tables_is_no_application_role(database: str, owned: Owned) -> None:
    name = str(psycopg.conninfo.conninfo_to_dict(owned[1])["user"])
    with psycopg.connect(database, autocommit=True) as inside:
        inside.execute(SQL("ALTER TABLE events OWNER TO {}").format(Identifier(name)))
        with pytest.raises(RoleUnusable, match="owns the tables"):
            roles.grant(database, application=name)
        inside.execute("ALTER TABLE events OWNER TO CURRENT_USER")


def test_whoever_gets_past_the_guard_is_found_by_the_doctor(ledger: str, look: Connection) -> None:
    with running(ledger) as writer:
        writer.execute(grant("ada", 100))
        writer.execute(admit("ada", 50))
    with past_the_guard(look):
        look.execute("DELETE FROM events WHERE position = 2")
    assert not examine(look).healthy
