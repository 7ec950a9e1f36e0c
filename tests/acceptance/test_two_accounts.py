"""Two accounts, and every object that has an id: whoever names another's is answered as if there were no such thing."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest

from adapters.postgres import credentials
from tests.support.machine import Machine
from tests.support.people import ADMIN_KEY, Session, mailed_code, sign_in, start_sign_in
from tests.support.processes import Coordinator, eventually

MODEL = "two-accounts"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


class Belongings(NamedTuple):
    """What one account has, by names; ``secrets`` must never be in an answer to anybody else."""

    session: Session
    key: str
    ids: dict[str, str]

    @property
    def marks(self) -> list[str]:
        return [self.session.account_id, self.session.email, self.session.token, self.key, *self.ids.values()]


class Attempt(NamedTuple):
    """A request that names an object. ``ids`` says which of the owner's are tried."""

    ids: tuple[str, ...]
    send: Callable[[httpx.Client, str], httpx.Response]


def delete_key(member: str) -> Callable[[httpx.Client, str], httpx.Response]:
    return lambda client, named: client.request("DELETE", "/v1/auth/keys", json={member: named})


ATTEMPTS: dict[str, Attempt] = {
    "revoke a key by its id": Attempt(("key_id",), delete_key("id")),
    "revoke a key by itself": Attempt(("key_secret",), delete_key("key")),
    "read a generation": Attempt(
        ("generation_id", "job_id"), lambda client, named: client.get(f"/v1/generations/{named}")
    ),
    "page through usage": Attempt(
        ("cursor",), lambda client, named: client.get("/v1/payments/usage", params={"cursor": named})
    ),
    "prove a charge": Attempt(
        ("job_id",), lambda client, named: client.get("/v1/transparency/inclusion", params={"job_id": named})
    ),
    "prove an event": Attempt(
        ("position",), lambda client, named: client.get("/v1/transparency/inclusion", params={"position": named})
    ),
    "see a machine": Attempt(("machine_id",), lambda client, named: client.get(f"/v1/me/providers/{named}/routing")),
    "list machines": Attempt(
        ("machine_id",), lambda client, named: client.get("/v1/me/providers", params={"id": named})
    ),
    "list keys": Attempt(
        ("key_id",), lambda client, named: client.get("/v1/auth/keys", params={"include_revoked": "1", "id": named})
    ),
    "replay a reply": Attempt(
        ("idempotency_key",),
        lambda client, named: client.post("/v1/auth/keys", headers={"Idempotency-Key": named}, json={"name": "theirs"}),
    ),
    "sign in with another's challenge": Attempt(
        ("challenge",),
        lambda client, named: client.post(
            "/auth/email/verify", json={"email": "thief@example.com", "code": "123456", "challenge": named}
        ),
    ),
    "read the books of an account": Attempt(
        ("account_id",), lambda client, named: client.get(f"/v1/admin/finance/accounts/{named}/statement")
    ),
    "find entries of an account": Attempt(
        ("account_id",), lambda client, named: client.get("/v1/admin/finance/entries", params={"account_id": named})
    ),
    "end an invite code": Attempt(
        ("invite_code",), lambda client, named: client.request("DELETE", "/v1/admin/invite-codes", json={"code": named})
    ),
    "list invite codes": Attempt(
        ("invite_code",), lambda client, named: client.get("/v1/admin/invite-codes", params={"code": named})
    ),
    "ask for the state of a device code": Attempt(
        ("user_code",), lambda client, named: client.post("/v1/device/token", json={"device_code": named})
    ),
}

MADE_UP = {
    "key_id": "key_0123456789abcdef",
    "key_secret": f"eigeninference-{'0' * 64}",
    "generation_id": "chatcmpl-00000000-0000-4000-8000-000000000000",
    "job_id": "00000000-0000-4000-8000-000000000000",
    "machine_id": "0" * 64,
    "challenge": "0" * 64,
    "account_id": "00000000-0000-4000-8000-000000000000",
    "invite_code": "INV-00000000",
    "user_code": "ABCD-EFGH",
    "idempotency_key": "made-up",
    "cursor": "MQ",
    "position": "1",
}


async def everything_of(up: Coordinator) -> Belongings:
    """Somebody with one of each."""
    session = await asyncio.to_thread(sign_in, up)
    idempotency_key = secrets.token_hex(8)
    async with httpx.AsyncClient(base_url=up.url, headers=session.headers, timeout=60.0) as client:
        invite = await client.post(
            "/v1/admin/invite-codes", headers={"Authorization": f"Bearer {ADMIN_KEY}"}, json={"amount_usd": 1}
        )
        code = invite.json()["code"]
        assert (await client.post("/v1/invite/redeem", json={"code": code})).status_code == 200
        made = await client.post("/v1/auth/keys", headers={"Idempotency-Key": idempotency_key}, json={"name": "theirs"})
        device = (await client.post("/v1/device/code")).json()
        await client.post("/v1/device/approve", json={"user_code": device["user_code"]})
        token = (await client.post("/v1/device/token", json={"device_code": device["device_code"]})).json()["token"]
        async with Machine(up.url, model="their-own", auth_token=token).connected():
            pass
        async with Machine(up.url, model=MODEL).connected():
            answer = await client.post("/v1/chat/completions", json=ASK)
        assert answer.status_code == 200, answer.text
        challenge = (await client.post("/auth/email/start", json={"email": session.email})).json()["challenge"]
    job_id = answer.headers["x-inference-job-id"]
    with psycopg.connect(up.books.dsn) as connection:
        found = connection.execute(
            "SELECT position FROM events WHERE topic LIKE 'Wallet.%%'"
            " AND convert_from(state, 'UTF8')::jsonb ->> 'account_id' = %s ORDER BY position LIMIT 1",
            (session.account_id,),
        ).fetchone()
        machines = connection.execute(
            "SELECT convert_from(state, 'UTF8')::jsonb ->> 'machine_id' FROM events WHERE topic = %s"
            " AND convert_from(state, 'UTF8')::jsonb ->> 'account_id' = %s",
            ("ProviderMachine.MachineLinked", session.account_id),
        ).fetchone()
    assert found is not None
    assert machines is not None
    ids = {
        "key_id": made.json()["id"],
        "key_secret": made.json()["api_key"],
        "generation_id": answer.json()["id"],
        "job_id": job_id,
        "machine_id": machines[0],
        "challenge": challenge,
        "account_id": session.account_id,
        "invite_code": code,
        "user_code": device["user_code"],
        "idempotency_key": idempotency_key,
        "refresh_token": session.refresh_token,
    }
    return Belongings(session, made.json()["api_key"], ids | {"position": str(found[0]), "cursor": "MTAwMDAwMDAw"})


@pytest.fixture(scope="module")
def owner(up: Coordinator) -> Belongings:
    return asyncio.run(everything_of(up))


def thieves(up: Coordinator) -> dict[str, str]:
    """Everything that another account can send as its credential."""
    session = sign_in(up)
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        manager = credentials.create_api_key(connection, session.account_id, "", scopes=["inference", "keys"]).secret
        provider = credentials.create_provider_token(connection, session.account_id)
    return {"a session": session.token, "a key": manager, "a provider token": provider, "nothing": ""}


def comparable(answer: httpx.Response, named: str) -> tuple[int, str]:
    """An answer without what was sent, and without what differs between two requests anyway."""
    text = answer.text.replace(named, "NAMED")
    varying = r'"(api_key|id|label|created_at|account_id)": ?"[^"]*"|\d+ s\.'
    return answer.status_code, re.sub(varying, "VARYING", text)


def try_as_others(up: Coordinator, owner: Belongings, attempt: Attempt) -> None:
    for name, credential in thieves(up).items():
        for of in attempt.ids:
            with up.client(credential) as client:
                real = attempt.send(client, owner.ids[of])
                made_up = attempt.send(client, MADE_UP[of])
            assert real.status_code < 500, (name, real.text)
            assert comparable(real, owner.ids[of]) == comparable(made_up, MADE_UP[of]), (name, of)
            shown = real.text.replace(owner.ids[of], "") + json.dumps(dict(real.headers))
            assert [mark for mark in owner.marks if len(mark) > 6 and mark in shown] == [], name


@pytest.mark.parametrize("what", ATTEMPTS)
def test_anothers_object_is_answered_like_none(up: Coordinator, owner: Belongings, what: str) -> None:
    try_as_others(up, owner, ATTEMPTS[what])


def test_after_all_of_that_the_owner_still_has_everything(up: Coordinator, owner: Belongings) -> None:
    for attempt in ATTEMPTS.values():
        try_as_others(up, owner, attempt)
    with up.client(owner.key) as client:
        assert client.get(f"/v1/generations/{owner.ids['generation_id']}").status_code == 200
        assert client.get(f"/v1/me/providers/{owner.ids['machine_id']}/routing").status_code == 200
    with up.client(owner.session.token) as client:
        keys: list[dict[str, Any]] = client.get("/v1/auth/keys").json()["data"]
        assert [key["id"] for key in keys] == [owner.ids["key_id"]]
        proof = eventually(lambda: _proof(client, owner.ids["job_id"]), "the charge to be under a checkpoint")
        assert proof
        refreshed = client.post("/auth/refresh", json={"refresh_token": owner.ids["refresh_token"]})
        assert refreshed.json()["account_id"] == owner.session.account_id


def _proof(client: httpx.Client, job_id: str) -> dict[str, Any] | None:
    answer = client.get("/v1/transparency/inclusion", params={"job_id": job_id})
    return dict(answer.json()) if answer.status_code == 200 else None


def test_a_session_ends_nobody_elses(up: Coordinator) -> None:
    mine, theirs = sign_in(up), sign_in(up)
    with up.client(mine.token) as client:
        client.post("/auth/logout", json={"everywhere": True, "account_id": theirs.account_id, "sid": "ses_1"})
    with up.client(theirs.token) as client:
        assert client.get("/v1/models").status_code == 200


def test_a_code_that_went_to_one_address_signs_in_nobody_at_another(up: Coordinator) -> None:
    victim, thief = sign_in(up), sign_in(up)
    with up.client() as client:
        challenge = start_sign_in(client, thief.email)
        code = mailed_code(up, thief.email)
        stolen = client.post("/auth/email/verify", json={"email": victim.email, "code": code, "challenge": challenge})
        assert stolen.status_code == 401
