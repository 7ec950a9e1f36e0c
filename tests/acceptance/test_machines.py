"""Machines that fail, lie, queue up or come back: what the consumer sees, and what becomes of the machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.support.machine import MODEL, Job, Machine, answer_at_once
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


async def _refuse(machine: Machine, job: Job) -> None:
    await machine.send_raw(
        json.dumps(
            {"type": "inference_error", "request_id": job.job_id, "error": "prompt was: hello", "status_code": 503}
        )
    )


async def _stay_silent(machine: Machine, job: Job) -> None:
    await job.cancelled.wait()


async def test_a_failing_machine_is_passed_over_and_another_one_answers(
    up: Coordinator, key: Key, client: httpx.AsyncClient
) -> None:
    async with Machine(up.url, _refuse).connected(), Machine(up.url).connected():
        answers = [await client.post("/v1/chat/completions", json=ASK) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    failed = up.books.value("SELECT count(*) FROM events WHERE topic = 'InferenceRequest.JobFailed'")
    assert isinstance(failed, int)
    assert up.books.balance(key.account_id) == (1_000_000 - 600, 0, 0)


async def test_a_silent_machine_is_passed_over_after_the_first_signal_timeout(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    silent = Machine(up.url, _stay_silent)
    async with silent.connected(), Machine(up.url).connected():
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=ASK) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert all(job.cancelled.is_set() for job in silent.jobs.values())


async def test_when_every_machine_fails_the_error_is_plain_and_nothing_is_charged(
    up: Coordinator, key: Key, client: httpx.AsyncClient
) -> None:
    async with Machine(up.url, _refuse).connected(), Machine(up.url, _refuse).connected():
        answer = await client.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["type"] == "provider_error"
    assert "2 attempts" in error["message"]
    assert "hello" not in answer.text
    assert not any(name.startswith("x-provider") for name in answer.headers)
    assert up.books.balance(key.account_id) == (1_000_000, 0, 0)
    assert up.books.ends_of(key.account_id) == ["RequestReleased"]


async def test_an_error_that_follows_from_the_request_is_not_tried_on_another_machine(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    async def too_long(machine: Machine, job: Job) -> None:
        await machine.send_raw(
            json.dumps({"type": "inference_error", "request_id": job.job_id, "error": "x", "status_code": 400})
        )

    first, second = Machine(up.url, too_long), Machine(up.url, too_long)
    async with first.connected(), second.connected():
        answer = await client.post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(first.jobs) + len(second.jobs) == 1


@pytest.mark.parametrize("violation", ["plaintext", "foreign_key", "garbage"])
async def test_a_chunk_that_is_not_sealed_makes_the_machine_untrusted_until_it_registers_again(
    up: Coordinator, client: httpx.AsyncClient, violation: str
) -> None:
    async def violate(machine: Machine, job: Job) -> None:
        await job.accept()
        sealed = {"ephemeral_public_key": machine.public_key, "ciphertext": "AAAA" * 20}
        frame: dict[str, object] = {"type": "inference_response_chunk", "request_id": job.job_id}
        if violation == "plaintext":
            frame |= {"data": "data: {}", "encrypted_data": sealed}
        elif violation == "foreign_key":
            frame["encrypted_data"] = sealed | {"ephemeral_public_key": "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="}
        else:
            frame["encrypted_data"] = sealed
        await machine.send_raw(json.dumps(frame))

    async with Machine(up.url, violate).connected() as machine:
        answer = await client.post("/v1/chat/completions", json=ASK)
        assert answer.status_code == 502
        assert machine.status is not None
        assert machine.status.status == "untrusted"
        await machine.heartbeat()  # must not lift it
        again = await client.post("/v1/chat/completions", json=ASK)
        assert again.status_code == 503
        assert len(machine.jobs) == 1


async def test_requests_wait_for_a_slot_and_are_served_in_order(up: Coordinator, client: httpx.AsyncClient) -> None:
    may_finish = asyncio.Semaphore(0)
    served: list[str] = []

    async def one_at_a_time(machine: Machine, job: Job) -> None:
        served.append(job.body["messages"][0]["content"])
        await job.accept()
        await may_finish.acquire()
        await answer_at_once(machine, job)

    async with Machine(up.url, one_at_a_time, concurrency=1).connected():
        tasks = []
        for number in range(5):
            body = ASK | {"messages": [{"role": "user", "content": f"number {number}"}]}
            tasks.append(asyncio.create_task(client.post("/v1/chat/completions", json=body)))
            waiting = max(0, number)
            await asyncio.to_thread(
                eventually,
                lambda waiting=waiting: (
                    len(served) == 1
                    and up.books.value("SELECT count(*) FROM waiters WHERE woken_at IS NULL") == waiting
                ),
                f"{waiting} requests to wait",
            )
        for _ in range(5):
            may_finish.release()
        answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {200}
    assert served == [f"number {number}" for number in range(5)]
    assert up.books.rows("SELECT * FROM waiters") == []
    assert up.books.rows("SELECT * FROM claims") == []


async def test_a_full_queue_refuses_with_retry_after(up: Coordinator, client: httpx.AsyncClient) -> None:
    ask = ASK | {"model": "nobody-knows-how-long-it-takes"}
    may_finish = asyncio.Event()

    async def wait(machine: Machine, job: Job) -> None:
        await job.accept()
        await may_finish.wait()
        await answer_at_once(machine, job)

    async with Machine(up.url, wait, concurrency=1, model=ask["model"]).connected():
        tasks = [asyncio.create_task(client.post("/v1/chat/completions", json=ask)) for _ in range(12)]
        refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (answer,) = {task.result() for task in refused}
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "model_not_available"
        assert answer.headers["retry-after"] == "30"  # 3 seconds for each of 11 places, but no more than this
        may_finish.set()
        answers = await asyncio.gather(*tasks)
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [503]


@asynccontextmanager
async def a_busy_machine(
    up: Coordinator, client: httpx.AsyncClient, model: str, *, slot_seconds: float
) -> AsyncGenerator[dict[str, Any], None]:
    """A request that finds the one slot for its model taken, which requests usually keep for so long. Each test has a
    model of its own: what the coordinator learnt of others is written a moment later."""
    ask = ASK | {"model": model}

    async def hold(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.cancelled.wait()

    async with Machine(up.url, hold, concurrency=1, model=model).connected() as machine:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=ask))
        await asyncio.to_thread(eventually, lambda: machine.jobs, "the machine to be at work")
        up.books.rows("UPDATE model_demand SET slot_seconds = %s WHERE model = %s RETURNING 1", slot_seconds, model)
        yield ask
        asking.cancel()


async def test_a_wait_beyond_the_time_that_a_request_has_is_refused_at_once(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    async with a_busy_machine(up, client, "slow", slot_seconds=900.0) as ask:
        answer = await client.post("/v1/chat/completions", json=ask)

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
    async with a_busy_machine(up, client, "crowded", slot_seconds=2.0) as ask:

        def waiting(account_id: str) -> int:
            [(count,)] = up.books.rows("SELECT count(*) FROM waiters WHERE account_id = %s", account_id)
            assert isinstance(count, int)
            return count

        greedy = [asyncio.create_task(client.post("/v1/chat/completions", json=ask)) for _ in range(10)]
        await asyncio.to_thread(eventually, lambda: waiting(key.account_id) == 10, "the queue to be full")
        async with httpx.AsyncClient(
            base_url=up.url, headers={"Authorization": f"Bearer {modest.secret}"}, timeout=60.0
        ) as other:
            asked = asyncio.create_task(other.post("/v1/chat/completions", json=ask))
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


async def test_the_newer_connection_of_a_machine_replaces_the_older_one(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    older = Machine(up.url)
    async with older.connected():
        newer = Machine(up.url, signing_key=older.signing_key)
        async with newer.connected():
            async with asyncio.timeout(10):
                await older.closed.wait()
            assert older.close_reason == "replaced by new connection from same device"
            assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
            assert len(newer.jobs) == 1
            assert older.jobs == {}


async def test_a_machine_that_vanishes_before_content_is_passed_over(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    async def vanish(machine: Machine, job: Job) -> None:
        await machine.drop()

    async with Machine(up.url, vanish).connected(), Machine(up.url).connected():
        answers = [await client.post("/v1/chat/completions", json=ASK) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}


async def test_a_machine_with_a_provider_token_earns_for_its_account(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    import psycopg

    from adapters.postgres.credentials import create_provider_token

    owner = up.books.open_account(0)
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        token = create_provider_token(connection, owner.account_id)
    async with Machine(up.url, auth_token=token).connected():
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
    assert up.books.balance(owner.account_id) == (100, 100, 0)
    up.books.require_balanced()


async def test_stray_frames_do_not_disturb_a_connection(up: Coordinator, client: httpx.AsyncClient) -> None:
    async with Machine(up.url).connected() as machine:
        for frame in (
            "not json",
            "[]",
            '{"type":"nonsense"}',
            '{"type":"inference_complete","request_id":"0","usage":{"prompt_tokens":1,"completion_tokens":1}}',
            '{"type":"inference_response_chunk","request_id":"unknown"}',
        ):
            await machine.send_raw(frame)
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
