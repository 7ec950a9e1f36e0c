"""A consumer chooses where a request may go: to machines of its own, for nothing, or to machines that it names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from adapters.postgres.credentials import create_provider_token
from tests.support.machine import Job, Machine, answer_at_once
from tests.support.processes import Coordinator, Key, coordinator

SHARED = "shared"
ASK: dict[str, Any] = {"model": SHARED, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
QUEUE_AND_SLOT = 11
"""Requests for a machine with one slot that are served or may wait."""

SELF = {"X-Darkbloom-Route": "self"}
PREFER = {"X-Darkbloom-Route": "prefer"}


@pytest.fixture
def owner(up: Coordinator) -> Key:
    return up.books.open_account(1_000_000)


@pytest.fixture
def token(up: Coordinator, owner: Key) -> str:
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        return create_provider_token(connection, owner.account_id)


@pytest.fixture
async def client(up: Coordinator, owner: Key) -> AsyncGenerator[httpx.AsyncClient, None]:
    headers = {"Authorization": f"Bearer {owner.secret}"}
    async with httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60.0) as connected:
        yield connected


async def ask(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=ASK | changes, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


async def test_one_s_own_machine_costs_nothing(
    up: Coordinator, owner: Key, token: str, client: httpx.AsyncClient
) -> None:
    async with (
        Machine(up.url, model=SHARED).connected() as somebodys,
        Machine(up.url, model=SHARED, auth_token=token).connected() as own,
    ):
        answers = [await ask(client, SELF) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert [answer.json()["usage"]["cost_micro_usd"] for answer in answers] == [0] * 4
        assert (len(own.jobs), len(somebodys.jobs)) == (4, 0)
        assert up.books.balance(owner.account_id) == (1_000_000, 0, 0)
        preferred = await ask(client, PREFER)
        assert preferred.json()["usage"]["cost_micro_usd"] == 0
        assert (len(own.jobs), len(somebodys.jobs)) == (5, 0)
    up.books.require_balanced()


async def test_nobody_waits_for_a_machine_that_cannot_come(
    up: Coordinator, token: str, client: httpx.AsyncClient
) -> None:
    async with Machine(up.url, model=SHARED).connected():
        assert refusal(await ask(client, SELF)) == (409, "no_linked_machine")
        paid = await ask(client, PREFER)
        assert paid.json()["usage"]["cost_micro_usd"] > 0
        async with Machine(up.url, model="another", auth_token=token).connected():
            assert refusal(await ask(client, SELF)) == (503, "machine_offline")
        for route in ("cheapest", ""):
            assert refusal(await ask(client, {"X-Darkbloom-Route": route})) == (400, "invalid_request_error")


async def test_a_machine_of_one_s_own_may_be_busy(up: Coordinator, token: str, client: httpx.AsyncClient) -> None:
    async def hold(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.cancelled.wait()

    async with Machine(up.url, hold, model="held", concurrency=1, auth_token=token).connected():
        asked = [asyncio.create_task(ask(client, SELF, model="held")) for _ in range(QUEUE_AND_SLOT + 1)]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert [refusal(task.result()) for task in done] == [(429, "machine_busy")]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_request_goes_only_to_the_machines_that_it_names(
    up: Coordinator, token: str, client: httpx.AsyncClient
) -> None:
    async with (
        Machine(up.url, answer_at_once, model=SHARED).connected() as other,
        Machine(up.url, answer_at_once, model=SHARED, auth_token=token).connected() as named,
    ):
        [listed] = (await client.get("/v1/me/providers")).json()["providers"]
        for member, value in (("provider_serial", listed["id"]), ("provider_serials", ["x", listed["id"]])):
            for _ in range(3):
                assert (await ask(client, **{member: value})).status_code == 200
        assert (len(named.jobs), len(other.jobs)) == (6, 0)
        assert all("provider_serial" not in job.body for job in named.jobs.values())
        assert refusal(await ask(client, provider_serial="nobody")) == (503, "model_not_available")
        assert refusal(await ask(client, provider_serial=[])) == (400, "invalid_request_error")


async def test_a_private_machine_serves_its_owner_and_nobody_else(
    up: Coordinator, token: str, client: httpx.AsyncClient
) -> None:
    stranger = {"Authorization": f"Bearer {up.books.open_account(1_000_000).secret}"}
    async with Machine(up.url, model="mine", auth_token=token, private_only=True).connected() as own:
        [listed] = (await client.get("/v1/me/providers")).json()["providers"]
        assert (listed["routable"], listed["routable_for_owner"]) == (False, True)
        assert [reason["code"] for reason in listed["reasons"]] == ["private_only"]
        assert "--private-only" in listed["reasons"][0]["fix"]
        for headers in (stranger, stranger | PREFER, {}):
            assert refusal(await ask(client, headers, model="mine")) == (404, "model_not_found")
            assert "mine" not in (await client.get("/v1/models", headers=headers)).text
        assert refusal(await ask(client, stranger | SELF, model="mine")) == (404, "model_not_found")
        assert not own.jobs
        assert '"mine"' in (await client.get("/v1/models", headers=SELF)).text
        for route in (SELF, PREFER):
            answer = await ask(client, route, model="mine")
            assert answer.json()["usage"]["cost_micro_usd"] == 0
        async with Machine(up.url, model="mine").connected() as other:
            assert (await ask(client, stranger, model="mine")).status_code == 200
            assert refusal(await ask(client, stranger, model="mine", provider_serial=listed["id"])) == (
                503,
                "model_not_available",
            )
            assert (len(own.jobs), len(other.jobs)) == (2, 1)


async def test_below_the_floor_of_trust_a_machine_serves_its_owner_alone(tmp_path: Path, database: str) -> None:
    strict = {"DARKBLOOM_MINIMUM_TRUST": "self_signed", "DARKBLOOM_NO_PROVIDER_WAIT_SECONDS": "1"}
    with coordinator(tmp_path, database=database, env=strict) as up:
        owner, stranger = up.books.open_account(1_000_000), up.books.open_account(1_000_000)
        with psycopg.connect(up.books.dsn, autocommit=True) as connection:
            token = create_provider_token(connection, owner.account_id)
        async with (
            httpx.AsyncClient(base_url=up.url, timeout=60.0) as client,
            Machine(up.url, model=SHARED, auth_token=token).connected() as own,
            Machine(up.url, model=SHARED, genuine=True).connected() as trusted,
        ):
            asks_owner, asks_stranger = ({"Authorization": f"Bearer {key.secret}"} for key in (owner, stranger))
            for _ in range(3):
                answer = await ask(client, asks_owner | SELF)
                assert (answer.status_code, answer.headers["X-Provider-Trust-Level"]) == (200, "none")
                assert answer.headers["X-Provider-Attested"] == "false"
                for headers in (asks_stranger, asks_stranger | PREFER, asks_owner):
                    answer = await ask(client, headers)
                    assert (answer.status_code, answer.headers["X-Provider-Trust-Level"]) == (200, "self_signed")
            assert refusal(await ask(client, asks_stranger | SELF)) == (409, "no_linked_machine")
            assert (len(own.jobs), len(trusted.jobs)) == (3, 9)
            [listed] = (await client.get("/v1/me/providers", headers=asks_owner)).json()["providers"]
            assert [reason["code"] for reason in listed["reasons"]] == ["trust_too_low"]
            assert listed["routable_for_owner"] is True
        up.books.require_balanced()
