"""Keys over HTTP: what they may do and spend, and that nobody touches another account's."""

from __future__ import annotations

import asyncio
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from adapters.postgres import credentials
from tests.support.machine import Job, Machine
from tests.support.processes import Coordinator, Key, eventually

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}


@pytest.fixture
def manager(up: Coordinator) -> Key:
    """A key that manages the keys of an account with credit."""
    owner = up.books.open_account(5_000_000)
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        key = credentials.create_api_key(connection, owner.account_id, "manager", scopes=["keys"])
    return Key(key.secret, key.key_id, owner.account_id)


def make(up: Coordinator, manager: Key, **settings: Any) -> dict[str, Any]:
    with up.client(manager.secret) as client:
        answer = client.post("/v1/auth/keys", json=settings)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def listed(up: Coordinator, manager: Key, query: str = "") -> list[dict[str, Any]]:
    with up.client(manager.secret) as client:
        data: list[dict[str, Any]] = client.get(f"/v1/auth/keys{query}").json()["data"]
    return data


def test_a_key_is_shown_once_and_listed_without_its_secret(up: Coordinator, manager: Key) -> None:
    made = make(up, manager, name="ci", limit_usd="2.50", limit_reset="monthly", rpm_limit=60)
    assert made["api_key"].startswith("eigeninference-")
    assert made["account_id"] == manager.account_id
    entry = listed(up, manager)[0]
    assert entry == {name: value for name, value in made.items() if name not in ("api_key", "account_id")}
    assert (entry["name"], entry["limit_micro_usd"], entry["limit_reset"], entry["rpm_limit"]) == (
        "ci",
        2_500_000,
        "monthly",
        60,
    )
    assert made["api_key"] not in json.dumps(listed(up, manager))


def test_the_first_use_of_a_key_is_noted(up: Coordinator, manager: Key) -> None:
    made = make(up, manager)
    assert made["last_used_at"] is None
    with up.client(made["api_key"]) as client:
        assert client.get("/v1/models").status_code == 200
    (entry,) = [entry for entry in listed(up, manager) if entry["id"] == made["id"]]
    assert entry["last_used_at"] is not None


def test_a_key_does_only_what_its_scopes_say(up: Coordinator, manager: Key) -> None:
    made = make(up, manager)
    with up.client(made["api_key"]) as client:
        for answer in (
            client.get("/v1/auth/keys"),
            client.post("/v1/auth/keys"),
            client.request("DELETE", "/v1/auth/keys"),
        ):
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden")
    with up.client(manager.secret) as client:
        refused = client.post("/v1/chat/completions", json=ASK | {"model": "darkbloom-tiny"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "forbidden")
        assert client.get("/v1/payments/balance").json()["balance_micro_usd"] == 5_000_000


@pytest.mark.parametrize("by", ["id", "key"])
def test_a_revoked_key_is_dead_at_once_and_stays_in_the_whole_list(up: Coordinator, manager: Key, by: str) -> None:
    made = make(up, manager)
    with up.client(manager.secret) as client:
        body = {by: made["id"] if by == "id" else made["api_key"]}
        answer = client.request("DELETE", "/v1/auth/keys", json=body)
        assert (answer.status_code, answer.json()) == (200, {"status": "revoked"})
        again = client.request("DELETE", "/v1/auth/keys", json=body)
        assert (again.status_code, again.json()["error"]["type"]) == (403, "forbidden")
        for nothing in ({}, {"key": ""}, {"key": None}, {"id": made["id"], "key": 1}):
            refused = client.request("DELETE", "/v1/auth/keys", json=nothing)
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "bad_request")
    with up.client(made["api_key"]) as client:
        assert client.get("/v1/models").status_code == 401
    assert made["id"] not in [entry["id"] for entry in listed(up, manager)]
    (entry,) = [entry for entry in listed(up, manager, "?include_revoked=1") if entry["id"] == made["id"]]
    assert entry["active"] is False


def test_an_expired_key_is_refused(up: Coordinator, manager: Key) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    kept, expired = (make(up, manager, expires_at=later) for _ in range(2))
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        connection.execute("UPDATE api_keys SET expires_at = now() WHERE key_id = %s", (expired["id"],))
    for made, status in ((kept, 200), (expired, 401)):
        with up.client(made["api_key"]) as client:
            assert client.get("/v1/models").status_code == status


def test_nobody_revokes_or_sees_the_keys_of_another_account(up: Coordinator, manager: Key) -> None:
    other = up.books.open_account(0)
    with up.client(manager.secret) as client:
        for body in ({"id": other.key_id}, {"key": other.secret}, {"key": "eigeninference-nothing"}, {"id": "\0"}):
            answer = client.request("DELETE", "/v1/auth/keys", json=body)
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden")
    assert other.key_id not in [entry["id"] for entry in listed(up, manager, "?include_revoked=1")]
    with up.client(other.secret) as client:
        assert client.get("/v1/models").status_code == 200


async def test_an_account_has_at_most_50_active_keys_however_many_are_made_at_once(
    up: Coordinator, manager: Key
) -> None:
    async with httpx.AsyncClient(
        base_url=up.url, headers={"Authorization": f"Bearer {manager.secret}"}, timeout=60
    ) as client:
        answers = await asyncio.gather(*(client.post("/v1/auth/keys") for _ in range(55)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(409)) == (48, 7)  # the fixture made the other two
    assert {answer.json()["error"]["type"] for answer in answers if answer.status_code == 409} == {"conflict"}


# --- spend limits ----------------------------------------------------------------------------------------------------


async def hold_back(machine: Machine, job: Job) -> None:
    """Answer only when the test says so."""
    await job.accept()
    await job.delta("Hello")
    await machine.release.wait()  # type: ignore[attr-defined]
    await job.delta(finish="stop")
    await job.complete(7, 1)


async def test_requests_that_run_at_once_never_exceed_a_keys_limit(up: Coordinator, manager: Key) -> None:
    name = f"slow-{secrets.token_hex(4)}"
    made = make(up, manager, limit_micro_usd=250)  # each request holds the minimum of 100
    machine = Machine(up.url, hold_back, model=name, concurrency=8)
    machine.release = asyncio.Event()  # type: ignore[attr-defined]
    async with (
        machine.connected(),
        httpx.AsyncClient(base_url=up.url, headers={"X-Api-Key": made["api_key"]}, timeout=60) as client,
    ):
        body = ASK | {"model": name, "stream": True}
        asking = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(6)]
        refused = []
        while len(refused) < 4:
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.result() for task in done]
            asking = [task for task in asking if task not in done]
        for answer in refused:
            assert answer.status_code == 402
            assert answer.json()["error"]["code"] == "insufficient_quota"
            assert "spend limit" in answer.json()["error"]["message"]
            assert answer.headers["x-should-retry"] == "false"
        machine.release.set()  # type: ignore[attr-defined]
        assert [(await task).status_code for task in asking] == [200, 200]
        again = await client.post("/v1/chat/completions", json=body)
        assert again.status_code == 402  # 200 are spent, and the next one would hold 100
    assert up.books.balance(manager.account_id) == (5_000_000 - 200, 0, 0)
    up.books.require_balanced()


# --- revocation in flight --------------------------------------------------------------------------------------------


async def talk_until_cancelled(machine: Machine, job: Job) -> None:
    await job.accept()
    for word in ("one", " two", " three"):
        await job.delta(word)
    await job.cancelled.wait()
    await job.complete(7, 3)


async def say_nothing(machine: Machine, job: Job) -> None:
    await job.accept()
    await job.cancelled.wait()


async def test_a_stream_of_a_revoked_key_ends_and_what_was_delivered_is_charged(up: Coordinator, manager: Key) -> None:
    name = f"talker-{secrets.token_hex(4)}"
    made = make(up, manager)
    async with (
        Machine(up.url, talk_until_cancelled, model=name).connected(),
        httpx.AsyncClient(base_url=up.url, headers={"X-Api-Key": made["api_key"]}, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=ASK | {"model": name, "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        async for line in lines:
            if "three" in line:
                break
        up.books.rows("SELECT 1")
        with up.client(manager.secret) as managing:
            assert managing.request("DELETE", "/v1/auth/keys", json={"id": made["id"]}).status_code == 200
        rest = [line async for line in lines if line]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["type"] == "authentication_error"
    eventually(lambda: up.books.ends_of(manager.account_id) == ["RequestSettled"], "the request to be settled", 20)
    assert up.books.balance(manager.account_id) == (5_000_000 - 100, 0, 0)


async def test_a_request_of_a_revoked_key_that_got_no_answer_yet_is_refused_and_free(
    up: Coordinator, manager: Key
) -> None:
    name = f"silent-{secrets.token_hex(4)}"
    made = make(up, manager)
    async with (
        Machine(up.url, say_nothing, model=name).connected() as machine,
        httpx.AsyncClient(base_url=up.url, headers={"X-Api-Key": made["api_key"]}, timeout=60) as client,
    ):
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=ASK | {"model": name}))
        while not machine.jobs:
            await asyncio.sleep(0.01)
        with psycopg.connect(up.books.dsn, autocommit=True) as connection:
            assert credentials.revoke_api_key(connection, made["id"])  # as the command line does, in another process
        answer = await asking
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    assert up.books.ends_of(manager.account_id) == ["RequestReleased"]
    assert up.books.balance(manager.account_id) == (5_000_000, 0, 0)
