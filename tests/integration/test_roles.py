"""The whole path under the roles of a well-kept server: every part does its work, and none can do more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.sql import SQL, Identifier

from adapters.crypto.notary import KeyFileNotary
from adapters.postgres import writer as writer_module
from api.cli import main
from projections.doctor import examine
from projections.registry import READ_MODELS, lagging
from projections.runner import ProjectionRunner
from projections.spot_check import SpotCheck
from projections.transparency_follower import TransparencyFollower
from tests.support.busy_day import run_day
from tests.support.ledger_writers import running
from tests.support.owned import Owned

pytest_plugins = ["tests.support.role_fixtures"]


@pytest.fixture
def at_work(owned: Owned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owned:
    """A day's work of every process, each under the application's role."""
    monkeypatch.setattr(writer_module, "SNAPSHOT_EVENTS", 20)
    with running(owned.application) as writer:
        run_day(writer)
    with running(owned.application) as writer:  # which loads what the first one kept
        run_day(writer, seed=2)
    ProjectionRunner(owned.application, lagging()).catch_up()
    notary = KeyFileNotary(tmp_path / "checkpoint.key", "example.org/ledger")
    follower = TransparencyFollower(owned.application, notary, checkpoint_seconds=1.0)
    follower.catch_up()
    follower.sign()
    assert [*SpotCheck(owned.application, seconds=1.0).look()] == []
    return owned


def run(url: str, *words: str) -> Result:
    return CliRunner().invoke(main, [*words], env={"DARKBLOOM_DATABASE_URL": url})


def count(url: str, table: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(SQL("SELECT count(*) FROM {}").format(Identifier(table))).fetchone()
    assert row is not None
    return int(row[0])


def test_writer_projections_and_tree_work_as_the_application_role(at_work: Owned) -> None:
    assert count(at_work.owner, "snapshots") > 0
    assert count(at_work.owner, "checkpoints") == 1
    assert all(count(at_work.owner, table) > 0 for table in READ_MODELS)
    with psycopg.connect(at_work.owner, autocommit=True) as connection:
        assert examine(connection).healthy


def test_the_spot_check_stops_the_writers_as_the_application_role(at_work: Owned) -> None:
    with psycopg.connect(at_work.owner, autocommit=True) as connection:
        connection.execute("UPDATE wallet_balances SET held_micro_usd = held_micro_usd + 1")
    assert SpotCheck(at_work.application, seconds=1.0).look()
    assert count(at_work.auditor, "ledger_stops") == 1


def test_a_replay_needs_no_more_than_the_application_role(at_work: Owned) -> None:
    assert run(at_work.application, "audit", "replay").exit_code == 0


def test_a_rebuild_needs_the_owner_and_says_so(at_work: Owned) -> None:
    for url in (at_work.application, at_work.auditor):
        refused = run(url, "audit", "rebuild")
        assert refused.exit_code == 1
        assert "Only the owner of the tables can rebuild them" in refused.output
    result = run(at_work.owner, "audit", "rebuild")
    assert result.exit_code == 0, result.output
    # The tables are the same for everybody afterwards.
    with running(at_work.application) as writer:
        run_day(writer, seed=3)
    ProjectionRunner(at_work.application, lagging()).catch_up()
    assert run(at_work.auditor, "audit", "doctor").exit_code == 0


READING: dict[str, tuple[str, ...]] = {
    "trial balance": ("trial-balance", "--json"),
    "trial balance from events": ("trial-balance", "--from-events", "--json"),
    "statement": ("statement", "ada", "--json"),
    "search": ("search", "--json"),
    "holds": ("holds", "--json"),
    "doctor": ("doctor", "--json"),
    "replay": ("replay", "--json"),
    "lag": ("lag", "--json"),
    "periods": ("periods",),
    "keys": ("keys",),
    "checkpoint": ("checkpoint",),
}


@pytest.mark.parametrize("what", READING)
def test_an_auditor_asks_with_read_access_alone(at_work: Owned, what: str) -> None:
    result = run(at_work.auditor, "audit", *READING[what])
    assert result.exit_code == 0, result.output
    if "--json" in READING[what]:
        found: Any = json.loads(result.stdout)
        assert found


@pytest.mark.parametrize("command", ["export", "export-events"])
def test_an_auditor_takes_the_books_home(at_work: Owned, command: str, tmp_path: Path) -> None:
    file = tmp_path / "books.jsonl"
    result = run(at_work.auditor, "audit", command, str(file))
    assert result.exit_code == 0, result.output
    assert len(file.read_text().splitlines()) > 50


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM transparency_tiles",
        "UPDATE checkpoints SET note = ''",
        "DELETE FROM checkpoints",
        "DELETE FROM checkpoint_keys",
        "TRUNCATE transparency_tiles",
        "DELETE FROM ledger_stops",
        "UPDATE ledger_stops SET finding = ''",
        "DELETE FROM audit_accesses",
        "UPDATE audit_accesses SET endpoint = ''",
        "ALTER TABLE transparency_tiles DISABLE TRIGGER ALL",
    ],
)
def test_the_application_role_cannot_take_back_what_it_published(at_work: Owned, change: str) -> None:
    with psycopg.connect(at_work.application, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(change)


def test_what_it_may_change_in_the_tree_still_only_grows(at_work: Owned) -> None:
    with psycopg.connect(at_work.application, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.RaiseException, match="only grows"):
            connection.execute("UPDATE transparency_tiles SET hashes = decode(repeat('00', 32), 'hex')")


def test_the_list_of_accesses_only_grows_for_the_owner_too(at_work: Owned) -> None:
    with psycopg.connect(at_work.owner, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.RestrictViolation, match="audit_accesses is append-only"):
            connection.execute("DELETE FROM audit_accesses")
