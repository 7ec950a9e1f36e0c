"""Invite codes over HTTP."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from adapters.postgres import credentials
from projections.doctor import examine
from tests.support.machine import MODEL
from tests.support.people import ADMIN_EMAIL, ADMIN_KEY, sign_in
from tests.support.processes import Coordinator, eventually

PATH = "/v1/admin/invite-codes"


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


def a_code() -> str:
    return f"TEST-{secrets.token_hex(6).upper()}"


def create(up: Coordinator, **members: Any) -> httpx.Response:
    with up.client(ADMIN_KEY) as client:
        return client.post(PATH, json={"amount_usd": 5.0} | members)


def redeem(up: Coordinator, secret: str, code: str, **headers: str) -> httpx.Response:
    with up.client(secret) as client:
        return client.post("/v1/invite/redeem", json={"code": code}, headers=headers)


def listed(up: Coordinator, code: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        with up.client(ADMIN_KEY) as client:
            rows = client.get(PATH).json()["invite_codes"]
        return next((row for row in rows if row["code"] == code), None)

    return eventually(look, "the code to be listed")


def test_a_code_without_wishes_is_made_up_and_works_once(up: Coordinator) -> None:
    made = create(up)
    assert made.status_code == 201
    body = made.json()
    assert body["code"].startswith("INV-")
    assert len(body["code"]) == 12
    assert {name: body[name] for name in ("amount_usd", "max_uses", "expires_at")} == {
        "amount_usd": "5.00",
        "max_uses": 1,
        "expires_at": None,
    }
    assert "expires_at" not in listed(up, body["code"])
    session = sign_in(up)
    answer = redeem(up, session.token, f" {body['code'].lower()} ")
    assert (answer.status_code, answer.json()) == (200, {"credited_usd": "5.00", "balance_usd": "5.000000"})
    with up.client(session.token) as client:
        balance = client.get("/v1/payments/balance").json()
    assert (balance["balance_micro_usd"], balance["withdrawable_micro_usd"]) == (5_000_000, 0)
    assert error_of(redeem(up, session.token, body["code"])) == (400, "invalid_request_error")
    assert error_of(redeem(up, sign_in(up).token, body["code"])) == (400, "invalid_request_error")
    eventually(lambda: listed(up, body["code"])["used_count"] == 1, "the use to be listed")


def test_a_code_is_listed_and_ended(up: Coordinator) -> None:
    code = a_code()
    made = create(up, code=code.lower(), amount_usd="2.5", max_uses=-3, expires_at="2099-01-02T03:04:05+01:00")
    assert made.json() == {
        "code": code,
        "amount_usd": "2.50",
        "max_uses": 1,
        "expires_at": "2099-01-02T02:04:05.000000Z",
    }
    row = listed(up, code)
    assert (row["used_count"], row["active"], row["amount_usd"]) == (0, True, "2.50")
    assert error_of(create(up, code=code)) == (409, "conflict")
    with up.client(ADMIN_KEY) as client:
        assert client.request("DELETE", PATH, json={"code": code}).json() == {"status": "deactivated"}
        assert error_of(client.request("DELETE", PATH, json={"code": a_code()})) == (404, "not_found")
        assert error_of(client.request("DELETE", PATH, json={})) == (400, "invalid_request_error")
    eventually(lambda: not listed(up, code)["active"], "its end to be listed")
    assert error_of(redeem(up, sign_in(up).token, code)) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "members",
    [
        {"amount_usd": 0},
        {"amount_usd": -1},
        {"amount_usd": "a lot"},
        {"amount_usd": None},
        {"amount_usd": True},
        {"amount_usd": 0.001},
        {"amount_usd": 1e30},
        {"amount_usd": 10_001},
        {"code": 5},
        {"code": "a"},
        {"code": "a:b:c:d"},
        {"code": "x" * 41},
        {"max_uses": "many"},
        {"max_uses": 10**9},
        {"expires_at": "tomorrow"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": 5},
    ],
)
def test_a_code_that_cannot_be_is_refused(up: Coordinator, members: dict[str, Any]) -> None:
    assert error_of(create(up, **members)) == (400, "invalid_request_error")


def test_only_administrators_make_codes(up: Coordinator) -> None:
    owner = up.books.open_account(0)
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        auditor = credentials.create_api_key(connection, owner.account_id, "a", "auditor").secret
        admin = credentials.create_api_key(connection, owner.account_id, "b", "admin").secret
    boss = sign_in(up, ADMIN_EMAIL).token
    for secret, status in (
        (owner.secret, 403),
        (auditor, 403),
        (sign_in(up).token, 403),
        ("", 401),
        (admin, 200),
        (boss, 200),
        (ADMIN_KEY, 200),
    ):
        with up.client(secret) as client:
            assert client.get(PATH).status_code == status
            made = client.post(PATH, json={"amount_usd": 1})
            assert made.status_code == (201 if status == 200 else status)
            ended = client.request("DELETE", PATH, json={"code": made.json().get("code", "NONE")})
            assert ended.status_code == status


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"code": null}', b'{"code": 5}', b'{"code": ""}', b'{"code": "\\u0000"}']
)
def test_a_request_without_a_code_is_refused(up: Coordinator, content: bytes) -> None:
    with up.client(up.books.open_account(0).secret) as client:
        assert error_of(client.post("/v1/invite/redeem", content=content)) == (400, "invalid_request_error")


def test_an_unknown_code_is_not_found(up: Coordinator) -> None:
    assert error_of(redeem(up, up.books.open_account(0).secret, a_code())) == (404, "not_found")


def test_of_many_who_redeem_at_once_as_many_succeed_as_the_code_allows(up: Coordinator) -> None:
    code = create(up, code=a_code(), max_uses=4, amount_usd=1).json()["code"]
    keys = [up.books.open_account(0) for _ in range(6)]
    with ThreadPoolExecutor(18) as pool:
        answers = list(pool.map(lambda key: redeem(up, key.secret, code), keys * 3))
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [400] * 14
    balances = [int(up.books.balance(key.account_id)[0]) for key in keys if _has_wallet(up, key.account_id)]  # type: ignore[call-overload]
    assert sum(balances) == 4_000_000
    assert set(balances) == {1_000_000}
    up.books.require_balanced()
    with psycopg.connect(up.books.dsn) as connection:
        findings = {finding.number: finding.state for finding in examine(connection).findings}
    assert (findings[4], findings[11]) == ("holds", "holds")


def _has_wallet(up: Coordinator, account_id: str) -> bool:
    return bool(up.books.rows("SELECT FROM wallet_balances WHERE account_id = %s", account_id))


def test_a_redemption_that_is_sent_again_gets_the_first_answer(up: Coordinator) -> None:
    code = create(up, code=a_code()).json()["code"]
    key = up.books.open_account(0)
    again = {"Idempotency-Key": secrets.token_hex(8)}
    first, second = [redeem(up, key.secret, code, **again) for _ in range(2)]
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert second.headers["idempotent-replayed"] == "true"
    assert up.books.balance(key.account_id)[0] == 5_000_000


def test_the_credit_pays_for_an_answer(up: Coordinator, real_agent: object) -> None:
    code = create(up, code=a_code()).json()["code"]
    session = sign_in(up)
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    with up.client(session.token) as client:
        assert error_of(client.post("/v1/chat/completions", json=ask)) == (402, "insufficient_funds")
        redeem(up, session.token, code)
        assert client.post("/v1/chat/completions", json=ask).status_code == 200
    eventually(lambda: up.books.balance(session.account_id) == (4_999_900, 0, 0), "the answer to be settled")
