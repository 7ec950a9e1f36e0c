"""A consumer whose request cannot wait hears why, where it would have stood, and when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.support.machine import MODEL, Job, Machine
from tests.support.processes import Coordinator, Key, eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(1_000_000)


@pytest.fixture
async def client(up: Coordinator, key: Key) -> AsyncGenerator[httpx.AsyncClient, None]:
    headers = {"Authorization": f"Bearer {key.secret}"}
    async with httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60.0) as connected:
        yield connected


@asynccontextmanager
async def a_busy_machine(up: Coordinator, client: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """The only machine, whose one slot is taken for as long as the block lasts."""

    async def hold(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.cancelled.wait()

    async with Machine(up.url, hold, concurrency=1).connected() as machine:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
        await asyncio.to_thread(eventually, lambda: machine.jobs, "the machine to be at work")
        yield
        asking.cancel()


def requests_take(up: Coordinator, seconds: float) -> None:
    up.books.rows(
        "INSERT INTO model_demand (model, slot_seconds) VALUES (%s, %s) "
        "ON CONFLICT (model) DO UPDATE SET slot_seconds = excluded.slot_seconds RETURNING 1",
        MODEL,
        seconds,
    )


async def test_a_wait_beyond_the_time_that_a_request_has_is_refused_at_once(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    async with a_busy_machine(up, client):
        requests_take(up, 900.0)
        answer = await client.post("/v1/chat/completions", json=ASK)

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "30"
    error = answer.json()["error"]
    assert error["code"] == "model_not_available"
    assert error["message"] == (
        "The queue for this model is longer than a request may wait; nothing was charged. "
        "It was number 1 in the queue, some 900 seconds from its turn; try again in 30 seconds."
    )


async def test_the_account_that_crowds_a_full_queue_makes_room_and_is_told_when_to_come_back(
    up: Coordinator, client: httpx.AsyncClient, key: Key
) -> None:
    modest = up.books.open_account(1_000_000)
    async with a_busy_machine(up, client):
        requests_take(up, 2.0)

        def waiting(account_id: str) -> int:
            [(count,)] = up.books.rows("SELECT count(*) FROM waiters WHERE account_id = %s", account_id)
            assert isinstance(count, int)
            return count

        greedy = [asyncio.create_task(client.post("/v1/chat/completions", json=ASK)) for _ in range(10)]
        await asyncio.to_thread(eventually, lambda: waiting(key.account_id) == 10, "the queue to be full")
        async with httpx.AsyncClient(
            base_url=up.url, headers={"Authorization": f"Bearer {modest.secret}"}, timeout=60.0
        ) as other:
            asked = asyncio.create_task(other.post("/v1/chat/completions", json=ASK))
            [refused], _ = await asyncio.wait(greedy, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            answer = refused.result()
            assert (waiting(key.account_id), waiting(modest.account_id)) == (9, 1)
            asked.cancel()
        for one in greedy:
            one.cancel()

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "22"
    assert answer.json()["error"]["message"] == (
        "Too many requests are waiting for this model; nothing was charged. "
        "It was number 11 in the queue, some 22 seconds from its turn; try again in 22 seconds."
    )
