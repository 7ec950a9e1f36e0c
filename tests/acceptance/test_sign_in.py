"""Signing in over HTTP: with a code by e-mail, with a session of Privy, and with the operator's admin key."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adapters.postgres import credentials
from tests.support.people import ADMIN_EMAIL, ADMIN_KEY, an_address, mailed_code, sign_in, start_sign_in
from tests.support.privy import APP_ID, APP_SECRET, Privy, email, privy
from tests.support.processes import Coordinator, coordinator
from tests.support.smtp_sink import Sink, smtp_sink


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


# --- with a code by e-mail -------------------------------------------------------------------------------------------


def test_somebody_new_signs_in_makes_a_key_and_signs_out(up: Coordinator) -> None:
    session = sign_in(up)
    with up.client() as client:
        assert client.get("/v1/payments/balance", headers=session.headers).json()["balance_micro_usd"] == 0
        made = client.post("/v1/auth/keys", headers=session.headers, json={"name": "ci"}).json()
        assert (made["account_id"], made["name"]) == (session.account_id, "ci")
        assert client.get("/v1/models", headers=bearer(made["api_key"])).status_code == 200
        assert client.post("/auth/logout", headers=session.headers).json() == {"status": "signed_out"}
        assert error_of(client.get("/v1/models", headers=session.headers)) == (401, "authentication_error")
        assert error_of(client.post("/auth/refresh", json={"refresh_token": session.refresh_token})) == (
            401,
            "auth_error",
        )
        assert client.get("/v1/models", headers=bearer(made["api_key"])).status_code == 200


def test_an_account_comes_back_with_its_address_however_it_is_written(up: Coordinator) -> None:
    address = an_address()
    assert sign_in(up, address).account_id == sign_in(up, address).account_id
    with up.client() as client:
        challenge = start_sign_in(client, f"  {address.upper()} ")
        code = {"email": address.title(), "code": f" {mailed_code(up, address)} ", "challenge": challenge}
        assert client.post("/auth/email/verify", json=code).status_code == 200


def test_a_token_is_refreshed_and_the_answers_are_not_kept_on_the_way(up: Coordinator) -> None:
    session = sign_in(up)
    with up.client() as client:
        refreshed = client.post("/auth/refresh", json={"refresh_token": session.refresh_token})
        assert refreshed.headers["cache-control"] == "no-store"
        assert client.get("/v1/models", headers=bearer(refreshed.json()["token"])).status_code == 200
        assert refreshed.json()["refresh_token"] != session.refresh_token


def test_signing_out_everywhere_ends_the_other_sessions_too(up: Coordinator) -> None:
    address = an_address()
    here, there = sign_in(up, address), sign_in(up, address)
    other = sign_in(up)
    with up.client() as client:
        client.post("/auth/logout", headers=here.headers, json={"everywhere": True})
        assert client.get("/v1/models", headers=there.headers).status_code == 401
        assert client.get("/v1/models", headers=other.headers).status_code == 200


def test_nobody_can_tell_whether_an_address_is_known(up: Coordinator) -> None:
    known, unknown = sign_in(up).email, an_address()
    with up.client() as client:
        answers = [client.post("/auth/email/start", json={"email": address}) for address in (known, unknown)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json().keys() == answers[1].json().keys()
        refused = [
            client.post("/auth/email/verify", json={"email": address, "code": "000000", "challenge": "x"})
            for address in (known, unknown)
        ]
        assert refused[0].json() == refused[1].json()


def test_a_code_works_for_the_one_who_asked_for_it_and_once(up: Coordinator) -> None:
    address = an_address()
    with up.client() as client:
        challenge = start_sign_in(client, address)
        code = mailed_code(up, address)
        right = {"email": address, "code": code, "challenge": challenge}
        for wrong in ({"challenge": "0" * 64}, {"code": f"{int(code) ^ 1:06}"}, {"email": an_address()}):
            assert error_of(client.post("/auth/email/verify", json=right | wrong)) == (401, "auth_error")
        assert client.post("/auth/email/verify", json=right).status_code == 200
        assert error_of(client.post("/auth/email/verify", json=right)) == (401, "auth_error")


def test_an_address_gets_five_codes_an_hour(up: Coordinator) -> None:
    address = an_address()
    with up.client() as client:
        statuses = [client.post("/auth/email/start", json={"email": address}).status_code for _ in range(6)]
    assert statuses == [200] * 5 + [429]


@pytest.mark.parametrize("path", ["/auth/email/start", "/auth/email/verify", "/auth/refresh", "/v1/admin/auth/init"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"email": 5}',
        b'{"email": "nobody"}',
        b'{"email": "a@b\\nBcc: x@y.z"}',
        b'{"email": "a b@example.com"}',
        b'{"email": "' + b"a" * 300 + b'@example.com"}',
        b'{"refresh_token": null}',
    ],
)
def test_what_is_no_sign_in_is_refused(up: Coordinator, path: str, content: bytes) -> None:
    with up.client() as client:
        assert client.post(path, content=content).status_code == 400


# --- who may do what -------------------------------------------------------------------------------------------------

FOR_PEOPLE: dict[str, Callable[[httpx.Client, dict[str, str]], httpx.Response]] = {
    "make a key": lambda client, headers: client.post("/v1/auth/keys", headers=headers),
    "list keys": lambda client, headers: client.get("/v1/auth/keys", headers=headers),
    "revoke a key": lambda client, headers: client.request(
        "DELETE", "/v1/auth/keys", headers=headers, json={"id": "x"}
    ),
    "link a machine": lambda client, headers: client.post(
        "/v1/device/approve", headers=headers, json={"user_code": "ABCD-EFGH"}
    ),
}


@pytest.mark.parametrize("deed", FOR_PEOPLE)
def test_what_needs_a_person_refuses_a_key(up: Coordinator, deed: str) -> None:
    key = up.books.open_account(0)
    with up.client() as client:
        assert error_of(FOR_PEOPLE[deed](client, bearer(key.secret))) == (403, "forbidden")
        assert error_of(FOR_PEOPLE[deed](client, {})) == (401, "authentication_error")
        assert error_of(FOR_PEOPLE[deed](client, bearer("eyJhbGciOiJub25lIn0.e30."))) == (401, "authentication_error")
        assert FOR_PEOPLE[deed](client, sign_in(up).headers).status_code not in (401, 500)


def test_a_provider_token_opens_nothing_for_consumers(up: Coordinator) -> None:
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        token = credentials.create_provider_token(connection, up.books.open_account(0).account_id)
    with up.client() as client:
        for path in ("/v1/models", "/v1/payments/balance", "/v1/auth/keys"):
            assert error_of(client.get(path, headers=bearer(token))) == (401, "authentication_error")
        answer = client.post("/v1/chat/completions", headers={"X-Api-Key": token}, json={})
        assert error_of(answer) == (401, "authentication_error")


def test_the_admin_key_acts_as_its_own_account_and_reads_the_books(up: Coordinator) -> None:
    with up.client(ADMIN_KEY) as client:
        assert client.get("/v1/payments/balance").status_code == 200
        assert client.get("/v1/admin/finance/trial-balance").status_code == 200
        assert error_of(client.post("/v1/device/approve", json={"user_code": "ABCD-EFGH"})) == (403, "forbidden")


def test_an_administrator_signs_in_from_a_terminal(up: Coordinator) -> None:
    with up.client() as client:
        assert client.post("/v1/admin/auth/init", json={"email": ADMIN_EMAIL}).status_code == 200
        code = mailed_code(up, ADMIN_EMAIL)
        answer = client.post("/v1/admin/auth/verify", json={"email": ADMIN_EMAIL, "code": code})
        assert (answer.status_code, len(code)) == (200, 8)
        session = bearer(answer.json()["token"])
        assert client.get("/v1/admin/finance/trial-balance", headers=session).status_code == 200


def test_anybody_else_does_not_become_one(up: Coordinator) -> None:
    address = an_address()
    with up.client() as client:
        assert client.post("/v1/admin/auth/init", json={"email": address}).status_code == 200
        code = {"email": address, "code": mailed_code(up, address)}
        assert error_of(client.post("/v1/admin/auth/verify", json=code)) == (401, "auth_error")
        session = sign_in(up, address)
        assert client.get("/v1/admin/finance/trial-balance", headers=session.headers).status_code == 403


def test_personal_data_and_secrets_are_in_no_event(up: Coordinator) -> None:
    session = sign_in(up)
    texts = [bytes(state).decode() for (state,) in up.books.rows("SELECT state FROM events")]  # type: ignore[arg-type]
    assert any(session.account_id in text for text in texts)
    for secret in ("@example.com", session.token, session.refresh_token, ADMIN_KEY):
        assert not [text for text in texts if secret in text]


# --- with Privy, in production ---------------------------------------------------------------------------------------


class Production(NamedTuple):
    up: Coordinator
    privy: Privy
    mail: Sink
    key: EllipticCurvePrivateKey

    def token(self, subject: str, **changes: Any) -> str:
        now = int(time.time())
        claims = {"iss": "privy.io", "aud": APP_ID, "sub": subject, "sid": "s", "iat": now, "exp": now + 3_600}
        return jwt.encode(claims | changes, self.key, algorithm="ES256")


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Generator[Production, None, None]:
    """A coordinator in production mode that takes Privy's sessions and sends mail, on its own database."""
    key = generate_private_key(SECP256R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with privy() as stand_in, smtp_sink() as sink:
        env = {
            "DARKBLOOM_ENVIRONMENT": "production",
            "EIGENINFERENCE_PRIVY_APP_ID": APP_ID,
            "EIGENINFERENCE_PRIVY_APP_SECRET": APP_SECRET,
            "EIGENINFERENCE_PRIVY_VERIFICATION_KEY": pem.replace("\n", "\\n"),
            "DARKBLOOM_PRIVY_API_URL": stand_in.url,
            "EIGENINFERENCE_ADMIN_EMAILS": "Owner@Example.com, other@example.com",
            "DARKBLOOM_SMTP_URL": f"smtp://127.0.0.1:{sink.port}",
            "DARKBLOOM_WRONG_CREDENTIALS_PER_MINUTE": "20",
            "DARKBLOOM_FINANCIAL_RATE_LIMIT_RPS": "0",
            "DARKBLOOM_RATE_LIMIT_RPS": "0",
        }
        with coordinator(tmp_path_factory.mktemp("production"), env=env) as running:
            yield Production(running, stand_in, sink, key)


def did() -> str:
    return f"did:privy:{secrets.token_hex(8)}"


def test_the_first_sight_of_a_subject_makes_one_account_however_many_come(production: Production) -> None:
    subject = did()
    production.privy.users[subject] = [email(an_address())]
    token = production.token(subject)

    def visit(_: int) -> int:
        with production.up.client(token) as client:
            return client.get("/v1/payments/balance").status_code

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(visit, range(24))) == {200}
    accounts = production.up.books.rows("SELECT account_id FROM identities WHERE subject = %s", subject)
    assert len(accounts) == 1
    opened = production.up.books.value(
        "SELECT count(*) FROM events WHERE topic = 'Account.AccountOpened'"
        " AND convert_from(state, 'UTF8')::jsonb ->> 'account_id' = %s",
        accounts[0][0],
    )
    assert opened == 1


def test_an_administrators_address_from_privy_opens_the_admins_routes(production: Production) -> None:
    subject, other = did(), did()
    production.privy.users |= {subject: [email("OWNER@example.com")], other: [email(an_address())]}
    with production.up.client() as client:
        path = "/v1/admin/finance/trial-balance"
        for somebody, status in ((subject, 200), (other, 403)):
            client.get("/v1/models", headers=bearer(production.token(somebody)))
            assert client.get(path, headers=bearer(production.token(somebody))).status_code == status


@pytest.mark.parametrize("status", [401, 404, 500])
def test_without_an_answer_of_privy_the_account_has_no_details(production: Production, status: int) -> None:
    subject = did()
    production.privy.status = status
    try:
        with production.up.client(production.token(subject)) as client:
            assert client.post("/v1/auth/keys").status_code == 200
    finally:
        production.privy.status = 200
    found = production.up.books.rows(
        "SELECT email, wallet_address FROM personal_details JOIN identities USING (account_id) WHERE subject = %s",
        subject,
    )
    assert found == [("", "")]


def test_a_session_of_privy_that_signed_out_here_is_over_here(production: Production) -> None:
    subject = did()
    with production.up.client(production.token(subject, sid="one")) as client:
        assert client.post("/auth/logout").status_code == 200
        assert client.get("/v1/models").status_code == 401
    with production.up.client(production.token(subject, sid="two")) as client:
        assert client.get("/v1/models").status_code == 200


def test_in_production_the_code_comes_by_mail_and_never_to_the_log(production: Production) -> None:
    address = an_address()
    with production.up.client() as client:
        challenge = start_sign_in(client, address)
        received = production.mail.received[-1]
        code = received.message["Subject"].rpartition(" ")[2]
        answer = client.post("/auth/email/verify", json={"email": address, "code": code, "challenge": challenge})
    assert (answer.status_code, received.recipients) == (200, [address])
    for secret in (code, address, answer.json()["token"], answer.json()["refresh_token"]):
        assert secret not in production.up.process.log()


@pytest.mark.parametrize("path", ["/auth/email/start", "/v1/admin/auth/init"])
def test_a_mail_that_cannot_be_sent_is_an_error_that_names_nobody(production: Production, path: str) -> None:
    address = an_address()
    production.mail.refuses_recipients = True
    try:
        with production.up.client() as client:
            refused = client.post(path, json={"email": address})
    finally:
        production.mail.refuses_recipients = False
    assert error_of(refused) == (500, "otp_error")
    assert address not in refused.text + production.up.process.log()


def test_twenty_wrong_credentials_a_minute_are_the_most(production: Production) -> None:
    forged = jwt.encode({"iss": "privy.io", "aud": APP_ID, "sub": did()}, generate_private_key(SECP256R1()), "ES256")
    with production.up.client() as client:
        wrong = (bearer(forged), bearer("eigeninference-wrong"), {"X-Api-Key": "eigeninference-pt-wrong"})
        answers = [client.get("/v1/models", headers=wrong[number % 3]) for number in range(25)]
        assert answers[0].status_code == 401
        assert "bearer" in answers[0].headers["www-authenticate"].lower()
        assert error_of(answers[-1]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert client.get("/v1/models", headers=bearer(production.token(did()))).status_code == 200


# --- what does not start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"DARKBLOOM_PRIVY_APP_ID": "app", "DARKBLOOM_PRIVY_VERIFICATION_KEY": "no key"}, "P-256"),
        ({"DARKBLOOM_SESSION_ISSUER": "else", "DARKBLOOM_SESSION_VERIFICATION_KEY": "x"}, "SESSION_AUDIENCE"),
        ({"DARKBLOOM_SESSION_ISSUER": "darkbloom", "DARKBLOOM_SESSION_AUDIENCE": "x"}, "second issuer"),
        ({"DARKBLOOM_SMTP_URL": "http://mail"}, "smtp://"),
        ({"DARKBLOOM_ADMIN_KEY": "short"}, "ADMIN_KEY"),
    ],
)
def test_settings_that_cannot_work_end_the_start_in_one_line(
    tmp_path: Path, database: str, env: dict[str, str], word: str
) -> None:
    with pytest.raises(AssertionError) as ended:
        with coordinator(tmp_path, database=database, env=env):
            pass
    assert word in str(ended.value)
    assert "Traceback" not in str(ended.value)
