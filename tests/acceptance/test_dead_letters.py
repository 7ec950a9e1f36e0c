"""Admins see what the scheduler gave up; others do not."""

from __future__ import annotations

import json
import os
import subprocess

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result

from adapters.postgres import credentials
from api.cli import main
from tests.support.processes import Coordinator, darkbloomd

PATH = "/v1/admin/jobs/dead"


def key_of(up: Coordinator, role: str) -> str:
    account = up.books.open_account(0).account_id
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        return credentials.create_api_key(connection, account, role, role).secret  # type: ignore[arg-type]


def test_an_admin_lists_replays_and_drops(up: Coordinator) -> None:
    with up.client(key_of(up, "admin")) as admin:
        listed = admin.get(PATH, params={"limit": 10})
        assert listed.status_code == 200
        assert set(listed.json()) == {"dead_letters", "total"}
        assert admin.post(f"{PATH}/replay", json={"ids": ["none-such"]}).json() == {"replayed": 0}
        assert admin.post(f"{PATH}/drop", json={"ids": ["none-such"]}).json() == {"dropped": 0}
        noted = up.books.rows("SELECT endpoint FROM audit_accesses WHERE endpoint LIKE '%%jobs/dead%%'")
    assert {str(row[0]) for row in noted} == {f"GET {PATH}", f"POST {PATH}/replay", f"POST {PATH}/drop"}


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["a"], "all": True}, {"ids": ["a"] * 1_001}, {"some": 1}])
def test_it_must_be_clear_which_are_meant(up: Coordinator, body: dict[str, object]) -> None:
    with up.client(key_of(up, "admin")) as admin:
        for change in ("replay", "drop"):
            refused = admin.post(f"{PATH}/{change}", json=body)
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("role", ["consumer", "auditor"])
def test_nobody_else_does(up: Coordinator, role: str) -> None:
    with up.client(key_of(up, role)) as client:
        answers = [client.get(PATH), client.post(f"{PATH}/replay", json={"all": True}), client.post(f"{PATH}/drop")]
    assert [answer.status_code for answer in answers] == [403] * 3


def test_an_admin_does_the_same_in_the_terminal(up: Coordinator) -> None:
    admin, auditor = key_of(up, "admin"), key_of(up, "auditor")

    def run(key: str, *words: str) -> Result:
        return CliRunner().invoke(main, ["dead-letters", *words, "--gateway", up.url, "--admin-key", key])

    command = darkbloomd("dead-letters", "list", "--json", "--gateway", up.url)
    environment = os.environ | {"DARKBLOOM_ADMIN_KEY": admin}
    listed = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    assert set(json.loads(listed.stdout)) == {"dead_letters", "total"}
    assert run(admin, "list").output.strip()
    assert json.loads(run(admin, "replay", "none-such", "--json").output) == {"replayed": 0}
    assert run(admin, "drop", "none-such").output == "dropped: 0\n"
    for refused, complaint in (
        (run(auditor, "list"), "admin"),
        (run(admin, "replay"), "--all"),
        (run(admin, "replay", "one", "--all"), "--all"),
    ):
        assert refused.exit_code != 0
        assert complaint in refused.output


def test_the_list_is_a_table_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = {
        "id": "m-1",
        "queue": "settle",
        "actor": "settle_job",
        "request_id": "r-1",
        "attempt": None,
        "queued_at": "2026-05-31T12:00:00Z",
    }

    def answer(method: str, url: str, **how: object) -> httpx.Response:
        assert (method, url) == ("GET", f"http://gateway:8{PATH}")
        assert how["headers"] == {"Authorization": "Bearer secret"}
        return httpx.Response(200, json={"dead_letters": [letter], "total": 3})

    monkeypatch.setattr(httpx, "request", answer)
    words = ["dead-letters", "list", "--limit", "1", "--gateway", "http://gateway:8/", "--admin-key", "secret"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split() == [
        "m-1",
        "settle",
        "settle_job",
        "r-1",
        "-",
        "2026-05-31T12:00:00Z",
    ]
    assert done.output.splitlines()[2] == "and 2 older ones; see --limit"


def test_a_gateway_that_is_not_there_is_named() -> None:
    words = ["dead-letters", "list", "--gateway", "http://127.0.0.1:1", "--admin-key", "secret"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "no gateway answers at http://127.0.0.1:1" in done.output
