"""Admins see what the scheduler gave up; others do not."""

from __future__ import annotations

import psycopg
import pytest

from adapters.postgres import credentials
from tests.support.processes import Coordinator

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
