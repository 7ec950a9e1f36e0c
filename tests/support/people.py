"""People who sign in to a coordinator that writes its mail to the log."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

import httpx

from tests.support.processes import Coordinator

ADMIN_KEY = "the-operators-own-admin-key"
ADMIN_EMAIL = "boss@example.com"


class Session(NamedTuple):
    token: str
    account_id: str
    refresh_token: str
    email: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def an_address() -> str:
    return f"{secrets.token_hex(6)}@example.com"


def mailed_code(up: Coordinator, email: str) -> str:
    """The newest code that went to an address."""
    codes = re.findall(rf"mail to {re.escape(email)}: Your Darkbloom sign-in code: (\d+)", up.process.log())
    return str(codes[-1])


def start_sign_in(client: httpx.Client, email: str) -> str:
    answer = client.post("/auth/email/start", json={"email": email})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["challenge"])


def sign_in(up: Coordinator, email: str = "") -> Session:
    """A session of somebody new, or of whoever has the address."""
    email = email or an_address()
    with up.client() as client:
        challenge = start_sign_in(client, email)
        code = {"email": email, "code": mailed_code(up, email), "challenge": challenge}
        answer = client.post("/auth/email/verify", json=code)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return Session(found["token"], found["account_id"], found["refresh_token"], email)
