"""A running coordinator whose tables were tampered with stops, says so, and goes on after repair and restart."""

from __future__ import annotations

from pathlib import Path

import psycopg
from click.testing import CliRunner

from api.cli import main
from tests.support.ledger_commands import grant
from tests.support.ledger_writers import running
from tests.support.processes import Coordinator, coordinator, eventually

ENV = {"DARKBLOOM_SPOT_CHECK_SECONDS": "1"}


def readiness(running: Coordinator) -> tuple[int, str]:
    with running.client() as client:
        answer = client.get("/readyz")
    return answer.status_code, answer.json()["status"]


def ask(running: Coordinator, secret: str) -> int:
    with running.client(secret) as client:
        body = {"model": "darkbloom-tiny", "messages": [{"role": "user", "content": "Hello"}]}
        return client.post("/v1/chat/completions", json=body).status_code


def test_a_changed_balance_stops_the_coordinator_until_it_is_repaired_and_started_again(
    database: str, tmp_path: Path
) -> None:
    with coordinator(tmp_path, database=database, env=ENV) as up:
        key = up.books.open_account(1_000_000)
        assert readiness(up) == (200, "ready")
        # When somebody gives an account more than its events say,
        with psycopg.connect(database, autocommit=True) as intruder:
            intruder.execute("UPDATE wallet_balances SET balance_micro_usd = balance_micro_usd + 1")
        eventually(lambda: up.books.rows("SELECT finding FROM ledger_stops"), "the check to find it")
        # then the next request is not served, and the gateway leaves the load balancer.
        assert ask(up, key.secret) == 503
        assert readiness(up) == (503, "halted")
        assert "the ledger stops" in up.process.log()
    # When the table is rebuilt and the coordinator started again, it goes on.
    repaired = CliRunner().invoke(main, ["audit", "rebuild"], env={"DARKBLOOM_DATABASE_URL": database})
    assert repaired.exit_code == 0, repaired.output
    with coordinator(tmp_path, database=database, env=ENV) as up:
        assert up.books.balance(key.account_id) == (1_000_000, 0, 0)
        with running(database) as writer:
            writer.execute(grant(key.account_id, 1))
        assert readiness(up) == (200, "ready")
