"""``darkbloomd audit lag``, ``replay`` and ``rebuild`` as an operator calls them."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from api.cli import main
from projections.registry import LAGGING, READ_MODELS, lagging
from projections.runner import ProjectionRunner
from tests.support.ledger_commands import account, grant, settled_request
from tests.support.ledger_writers import running
from tests.support.tampering import past_the_guard


@pytest.fixture
def books(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database of a coordinator that did some business, with everything applied."""
    monkeypatch.setenv("DARKBLOOM_DATABASE_URL", database)
    consumer = account()
    with running(database) as writer:
        writer.execute(grant(consumer, 1_000))
        settled_request(writer, consumer, hold=100, cost=60, provider="provider")
    ProjectionRunner(database, lagging()).catch_up()
    return database


def audit(*words: str) -> Result:
    return CliRunner().invoke(main, ["audit", *words])


def facts(result: Result) -> Any:
    return json.loads(result.stdout)


def test_lag_says_that_nothing_is_behind(books: str) -> None:
    lines = audit("lag")
    assert lines.exit_code == 0
    assert len(lines.stdout.splitlines()) == len(LAGGING)
    assert "journal_lines          at           10, behind by 0 events and 0.0 s" in lines.stdout

    found = facts(audit("lag", "--json"))["projections"]
    assert {one["name"] for one in found} == set(LAGGING)
    assert found[0].keys() == {"name", "position", "positions", "seconds", "failure", "failed_at"}


def test_lag_fails_when_a_projection_stands_still_and_says_why(books: str) -> None:
    with psycopg.connect(books, autocommit=True) as connection:
        connection.execute(
            "UPDATE projection_tracking SET position = 0, failure = 'UniqueViolation' WHERE name = %s", ["usage_minute"]
        )

    result = audit("lag")

    assert result.exit_code == 1
    assert "usage_minute           at            0, behind by 10 events and " in result.stdout
    assert "s; stands still: UniqueViolation" in result.stdout


def test_replay_finds_a_change_and_rebuild_mends_it(books: str) -> None:
    assert audit("replay").exit_code == 0
    with psycopg.connect(books, autocommit=True) as connection:
        connection.execute("UPDATE usage_totals SET requests = 2")

    lines = audit("replay")
    assert lines.exit_code == 1
    assert "usage_totals                      1 rows at           10  " in lines.stdout
    assert "  model=acme/small-8bit: live has requests=2, the log says requests=1" in lines.stdout
    result = audit("replay", "--json", "--projection", "usage_totals", "--projection", "journal_lines")
    assert result.exit_code == 1
    found = {one["name"]: one for one in facts(result)["projections"]}
    assert {name: one["identical"] for name, one in found.items()} == {"journal_lines": True, "usage_totals": False}
    assert found["usage_totals"]["live_sha256"] != found["usage_totals"]["replayed_sha256"]

    rebuilt = audit("rebuild", "--projection", "usage_totals")
    assert rebuilt.exit_code == 0
    assert rebuilt.stdout.startswith("rebuilt up to position 10 in ")
    assert rebuilt.stdout.splitlines()[0].endswith(" s: usage_totals")
    assert audit("replay").exit_code == 0


def test_rebuild_says_in_json_what_it_did(books: str) -> None:
    found = facts(audit("rebuild", "--json"))

    assert sorted(found["tables"]) == sorted(READ_MODELS)
    assert found["position"] == 10
    assert 0 < found["held_seconds"] < found["seconds"]


def test_replay_to_an_earlier_position_gives_no_verdict(books: str) -> None:
    result = audit("replay", "--to-position", "2")

    assert result.exit_code == 0
    assert {line.rpartition("  ")[2] for line in result.stdout.splitlines()} == {"not compared"}


def test_a_name_that_is_no_read_model_is_refused_with_the_ones_that_are() -> None:
    for command in ("replay", "rebuild"):
        result = audit(command, "--projection", "balances")
        assert result.exit_code == 2
        assert "'balances' is not one of 'earning_totals', " in result.stderr


def test_an_event_that_cannot_be_read_is_named_in_one_line(books: str) -> None:
    with psycopg.connect(books, autocommit=True) as connection:
        with past_the_guard(connection):
            connection.execute("UPDATE events SET state = 'x' WHERE position = 3")

    for command in ("replay", "rebuild"):
        result = audit(command)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: the event at position 3 (")
