"""Linking a machine with a code over HTTP, and on the page."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.support.people import an_address, mailed_code, sign_in
from tests.support.processes import Coordinator, coordinator

TOKEN = re.compile(r"eigeninference-pt-[0-9a-f]{64}")


def new_code(client: httpx.Client, said: object = None) -> dict[str, str]:
    answer = client.post("/v1/device/code", json=said) if said else client.post("/v1/device/code")
    assert answer.status_code == 200
    made: dict[str, str] = answer.json()
    return made


def poll(client: httpx.Client, device_code: str) -> httpx.Response:
    return client.post("/v1/device/token", json={"device_code": device_code})


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


def expire(up: Coordinator) -> None:
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        connection.execute("UPDATE device_codes SET expires_at = now() - interval '1 second'")


def test_a_code_is_shown_approved_and_turned_into_a_token_once(up: Coordinator) -> None:
    session = sign_in(up)
    with up.client() as client:
        made = new_code(client)
        assert re.fullmatch(r"[0-9a-f]{64}", made["device_code"])
        assert re.fullmatch(r"[A-HJKMNP-Z2-9]{4}-[A-HJKMNP-Z2-9]{4}", made["user_code"])
        assert (made["expires_in"], made["interval"]) == (900, 5)
        assert made["verification_uri"] == f"{up.url}/link"
        assert made["verification_uri_complete"] == f"{up.url}/link?code={made['user_code']}"
        assert poll(client, made["device_code"]).json() == {"status": "authorization_pending"}
        approved = client.post(
            "/v1/device/approve",
            headers=session.headers,
            json={"user_code": f" {made['user_code'].lower().replace('-', '')} "},
        )
        assert (approved.status_code, approved.json()["status"]) == (200, "approved")
        assert error_of(
            client.post("/v1/device/approve", headers=session.headers, json={"user_code": made["user_code"]})
        ) == (409, "already_used")
        answer = poll(client, made["device_code"])
        assert answer.json().keys() == {"status", "token", "account_id"}
        assert (answer.json()["status"], answer.json()["account_id"]) == ("authorized", session.account_id)
        assert TOKEN.fullmatch(answer.json()["token"])
        assert answer.headers["cache-control"] == "no-store"
        assert error_of(poll(client, made["device_code"])) == (410, "expired_token")


def test_what_cannot_be_is_said_in_the_right_words(up: Coordinator) -> None:
    session = sign_in(up)
    with up.client() as client:
        for body in ({}, {"device_code": ""}, {"device_code": 5}):
            assert error_of(client.post("/v1/device/token", json=body)) == (400, "invalid_request")
        for device_code in ("unknown", "\x00", "0" * 64):
            assert error_of(poll(client, device_code)) == (404, "invalid_grant")
        for typed, expected in (
            ("", (400, "invalid_request")),
            ("ABCD-EFGH", (404, "invalid_code")),
            ("OIL0-1111", (404, "invalid_code")),
            ("ABCD-\x00FGH", (404, "invalid_code")),
        ):
            answer = client.post("/v1/device/approve", headers=session.headers, json={"user_code": typed})
            assert error_of(answer) == expected
        made = new_code(client)
        expire(up)
        assert error_of(poll(client, made["device_code"])) == (410, "expired_token")
        answer = client.post("/v1/device/approve", headers=session.headers, json={"user_code": made["user_code"]})
        assert error_of(answer) == (410, "expired_code")


def test_ten_wrong_codes_of_an_account_are_the_most(up: Coordinator) -> None:
    session, other = sign_in(up), sign_in(up)
    with up.client() as client:
        made = new_code(client)
        for _ in range(10):
            answer = client.post("/v1/device/approve", headers=session.headers, json={"user_code": "ABCD-EFGH"})
            assert answer.status_code == 404
        right = {"user_code": made["user_code"]}
        assert client.post("/v1/device/approve", headers=session.headers, json=right).status_code == 429
        assert client.post("/v1/device/approve", headers=other.headers, json=right).status_code == 200


def test_thirty_requests_a_minute_of_a_stranger_are_the_most(tmp_path: Path, database: str) -> None:
    env = {
        "DARKBLOOM_SESSION_KEY_FILE": str(tmp_path / "session.key"),
        "DARKBLOOM_DEVICE_REQUESTS_PER_MINUTE": "30",
        "DARKBLOOM_SIGN_INS_PER_HOUR": "2",
        "DARKBLOOM_CONSOLE_URL": "https://console.example//",
    }
    with coordinator(tmp_path, database=database, env=env) as up, up.client() as client:
        made = new_code(client)
        assert made["verification_uri"] == "https://console.example/link"
        answers = [poll(client, made["device_code"]) for _ in range(40)]
        assert {answer.status_code for answer in answers[:25]} == {200}
        assert error_of(answers[-1]) == (429, "rate_limit_exceeded")
        assert int(answers[-1].headers["retry-after"]) >= 1
        asked = [client.post("/auth/email/start", json={"email": an_address()}).status_code for _ in range(3)]
        assert asked == [200, 200, 429]


def test_without_a_session_key_nobody_signs_in_and_no_machine_is_linked(tmp_path: Path, database: str) -> None:
    with coordinator(tmp_path, database=database) as up, up.client() as client:
        for path in ("/v1/device/code", "/auth/email/start", "/v1/admin/auth/init", "/auth/refresh"):
            assert error_of(client.post(path, json={"email": "a@b.cd"})) == (503, "not_configured")
        key = up.books.open_account(0)
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key.secret}"}).status_code == 200
        answer = client.post("/v1/device/approve", headers={"Authorization": "Bearer eyJ.a.b"}, json={})
        assert error_of(answer) == (403, "forbidden")


@pytest.mark.parametrize("said", [b'{"machine_name":"\xff"}', b"[" * 50_000, b'{"chip":5}', b"\x00"])
def test_what_a_machine_says_of_itself_must_be_texts(up: Coordinator, said: bytes) -> None:
    with up.client() as client:
        assert error_of(client.post("/v1/device/code", content=said)) == (400, "invalid_request_error")


def test_an_owner_looks_at_a_machine_and_refuses_it(up: Coordinator) -> None:
    session = sign_in(up)
    with up.client() as client:
        made = new_code(client, {"machine_name": "studio\n.local", "chip": "Apple M4 Max" + "x" * 99, "more": 1})
        query = {"user_code": made["user_code"].lower()}
        seen = client.get("/v1/device/pending", params=query, headers=session.headers).json()
        assert seen.keys() == {"user_code", "machine_name", "chip", "requested_at", "expires_at"}
        assert (seen["user_code"], seen["machine_name"]) == (made["user_code"], "studio.local")
        assert (seen["chip"][:12], len(seen["chip"])) == ("Apple M4 Max", 64)
        assert client.get("/v1/device/pending", params=query).status_code == 401
        refusal = {"user_code": made["user_code"]}
        assert client.post("/v1/device/deny", json=refusal).status_code == 401
        assert client.post("/v1/device/deny", headers=session.headers, json=refusal).json()["status"] == "denied"
        for path in ("/v1/device/deny", "/v1/device/approve"):
            assert error_of(client.post(path, headers=session.headers, json=refusal)) == (409, "already_used")
        for _ in range(2):
            assert poll(client, made["device_code"]).json() == {"status": "access_denied"}
        assert error_of(client.get("/v1/device/pending", params=query, headers=session.headers)) == (
            409,
            "already_used",
        )
        assert error_of(client.get("/v1/device/pending", headers=session.headers)) == (400, "invalid_request")


def test_a_machine_can_give_its_token_back(up: Coordinator) -> None:
    session = sign_in(up)
    with up.client() as client:
        made = new_code(client)
        client.post("/v1/device/approve", headers=session.headers, json={"user_code": made["user_code"]})
        token = {"Authorization": f"Bearer {poll(client, made['device_code']).json()['token']}"}
        assert client.post("/v1/device/revoke", headers=token).json() == {"status": "revoked"}
        for wrong in (token, session.headers, {}):
            assert error_of(client.post("/v1/device/revoke", headers=wrong)) == (401, "authentication_error")


# --- the page --------------------------------------------------------------------------------------------------------


def hidden(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found is not None, page
    return found[1]


def test_the_page_fills_in_a_code_and_does_nothing_by_itself(up: Coordinator) -> None:
    with up.client() as client:
        made = new_code(client)
        page = client.get("/link", params={"code": made["user_code"].lower()})
        assert hidden(page.text, "code") == made["user_code"]
        assert poll(client, made["device_code"]).json()["status"] == "authorization_pending"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert (page.headers["referrer-policy"], page.headers["cache-control"]) == ("no-referrer", "no-store")
        assert "set-cookie" not in page.headers


@pytest.mark.parametrize("evil", ['"><script>alert(1)</script>', "javascript:alert(1)", "{style}", "%00"])
def test_the_page_shows_what_it_was_sent_as_text(up: Coordinator, evil: str) -> None:
    with up.client() as client:
        for page in (
            client.get("/link", params={"code": evil}),
            client.post("/link/sign-in", data={"code": evil, "email": evil}),
            client.post("/link/approve", data={"code": evil, "email": evil, "challenge": evil}),
        ):
            assert page.status_code in (200, 400, 404)
            assert "<script>alert" not in page.text


def test_a_machine_is_linked_on_the_page_by_the_code_from_the_mail(up: Coordinator) -> None:
    address = an_address()
    with up.client() as client:
        made = new_code(client)
        page = client.post("/link/sign-in", data={"code": made["user_code"], "email": address})
        form = {name: hidden(page.text, name) for name in ("code", "email", "challenge")}
        wrong = client.post("/link/approve", data=form | {"sign_in_code": "000000"})
        assert (wrong.status_code, 'role="alert"' in wrong.text) == (401, True)
        assert poll(client, made["device_code"]).json()["status"] == "authorization_pending"
        done = client.post("/link/approve", data=form | {"sign_in_code": mailed_code(up, address)})
        assert "The machine is linked" in done.text
        assert poll(client, made["device_code"]).json()["account_id"] == sign_in(up, address).account_id


def test_the_page_describes_the_machine_and_refuses_it(up: Coordinator) -> None:
    address = an_address()
    with up.client() as client:
        made = new_code(client, {"machine_name": "<b>studio</b>", "chip": "Apple M4 Max"})
        page = client.post("/link/sign-in", data={"code": made["user_code"], "email": address})
        assert "&lt;b&gt;studio&lt;/b&gt;" in page.text
        assert "Apple M4 Max" in page.text
        assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", page.text)
        assert 'formaction="/link/refuse"' in page.text
        form = {name: hidden(page.text, name) for name in ("code", "email", "challenge")}
        wrong = client.post("/link/refuse", data=form | {"sign_in_code": "000000"})
        assert (wrong.status_code, "Apple M4 Max" in wrong.text) == (401, True)
        assert poll(client, made["device_code"]).json()["status"] == "authorization_pending"
        done = client.post("/link/refuse", data=form | {"sign_in_code": mailed_code(up, address)})
        assert "not linked" in done.text
        assert poll(client, made["device_code"]).json() == {"status": "access_denied"}


def test_a_code_with_a_typing_error_is_asked_for_again(up: Coordinator) -> None:
    address = an_address()
    with up.client() as client:
        made = new_code(client)
        for code in ("ABC", "ABCD-EFGH"):
            answer = client.post("/link/sign-in", data={"code": code, "email": address})
            assert (answer.status_code, 'action="/link/sign-in"' in answer.text) == (404, True)
        assert client.post("/link/sign-in", data={"code": made["user_code"], "email": "nobody"}).status_code == 400
        page = client.post("/link/sign-in", data={"code": made["user_code"], "email": address})
        form = {name: hidden(page.text, name) for name in ("code", "email", "challenge")} | {"code": "ABCD-EFGH"}
        answer = client.post("/link/approve", data=form | {"sign_in_code": mailed_code(up, address)})
        assert (answer.status_code, 'action="/link/sign-in"' in answer.text) == (404, True)
        assert client.post("/link/approve", content=b"\xff=\xff" * 9).status_code in (400, 404)
