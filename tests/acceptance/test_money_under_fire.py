"""Money when things go wrong: too many at once, machines and coordinators that die, consumers that leave."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from tests.support.machine import MODEL, Job, Machine, answer_at_once
from tests.support.processes import Coordinator, Process, coordinator, eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}


async def test_200_requests_on_a_balance_for_50_admit_exactly_50(up: Coordinator) -> None:
    key = up.books.open_account(50 * 100)
    may_finish = asyncio.Event()

    async def hold_back(machine: Machine, job: Job) -> None:
        await job.accept()
        await may_finish.wait()
        await answer_at_once(machine, job)

    async with (
        Machine(up.url, hold_back, concurrency=64).connected() as machine,
        httpx.AsyncClient(
            base_url=up.url,
            headers={"Authorization": f"Bearer {key.secret}"},
            timeout=60.0,
            limits=httpx.Limits(max_connections=200),
        ) as client,
    ):
        requests = [asyncio.create_task(client.post("/v1/chat/completions", json=ASK)) for _ in range(200)]
        refused: list[httpx.Response] = []
        for done in asyncio.as_completed(requests):
            refused.append(await done)
            if len(refused) == 150:
                break
        assert {answer.status_code for answer in refused} == {402}
        assert refused[0].json()["error"]["type"] == "insufficient_funds"
        assert refused[0].json()["error"]["code"] == "insufficient_quota"
        assert up.books.balance(key.account_id) == (0, 0, 5_000)
        may_finish.set()
        answers = await asyncio.gather(*requests)

    assert sorted(answer.status_code for answer in answers) == [200] * 50 + [402] * 150
    assert len(machine.jobs) == 50
    assert up.books.balance(key.account_id) == (0, 0, 0)
    assert up.books.ends_of(key.account_id) == ["RequestSettled"] * 50
    up.books.require_balanced()


def _stream_lines(client: httpx.Client, body: dict[str, object]) -> list[str]:
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        return [line for line in answer.iter_lines() if line]


def test_an_agent_killed_mid_answer_ends_the_stream_with_an_error_and_costs_nothing(
    up: Coordinator, endless_agent: Process
) -> None:
    key = up.books.open_account(5_000_000)
    body = ASK | {"model": "endless", "max_tokens": 20_000, "stream": True}
    lines: list[str] = []
    with up.client(key.secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == 6:
                endless_agent.kill_9()

    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "data: [DONE]" not in lines
    assert events[-1]["error"]["type"] == "provider_error"
    eventually(lambda: up.books.ends_of(key.account_id) == ["RequestReleased"], "the release")
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)
    up.books.require_balanced()


async def test_a_coordinator_killed_between_hold_and_settlement_ends_each_hold_once(tmp_path: Path) -> None:
    accepted = asyncio.Semaphore(0)

    async def never_answer(machine: Machine, job: Job) -> None:
        await job.accept()
        accepted.release()
        await asyncio.Event().wait()

    with coordinator(tmp_path) as running:
        key = await asyncio.to_thread(running.books.open_account, 1_000_000)
        async with Machine(running.url, never_answer).connected():
            async with httpx.AsyncClient(base_url=running.url, timeout=60.0) as client:
                requests = [
                    asyncio.create_task(
                        client.post(
                            "/v1/chat/completions",
                            json=ASK | {"stream": stream},
                            headers={"Authorization": f"Bearer {key.secret}"},
                        )
                    )
                    for stream in (True, False)
                ]
                for _ in requests:
                    await accepted.acquire()
                assert running.books.balance(key.account_id)[2] == 200
                running.process.kill_9()
                for request in requests:
                    with pytest.raises(httpx.TransportError):
                        await request

    with coordinator(tmp_path) as again:
        released = ["RequestReleased"] * 2
        await asyncio.to_thread(
            eventually, lambda: again.books.ends_of(key.account_id) == released, "the holds to come back"
        )
        assert again.books.balance(key.account_id) == (1_000_000, 0, 0)
        assert again.books.rows("SELECT * FROM open_requests") == []
        again.books.require_balanced()

    with coordinator(tmp_path) as third:
        assert third.books.ends_of(key.account_id) == released


async def test_a_consumer_who_leaves_mid_answer_pays_what_was_delivered(up: Coordinator) -> None:
    key = up.books.open_account(1_000_000)

    async def until_cancelled(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.delta("one two three four")
        await job.cancelled.wait()
        await job.complete(7, 4)

    async with Machine(up.url, until_cancelled).connected():
        await _read_first_content_and_leave(up, key.secret)
        settled = ["RequestSettled"]
        await asyncio.to_thread(eventually, lambda: up.books.ends_of(key.account_id) == settled, "the settlement")
    (usage,) = up.books.rows(
        "SELECT prompt_tokens, completion_tokens, cost_micro_usd FROM usage_entries WHERE account_id = %s",
        key.account_id,
    )
    assert usage == (7, 4, 100)
    assert up.books.balance(key.account_id) == (999_900, 0, 0)


async def test_a_machine_that_claims_more_than_it_delivered_is_clamped_and_noted(up: Coordinator) -> None:
    key = up.books.open_account(1_000_000)

    async def overclaim(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.delta("hi")
        await job.delta(finish="stop")
        await job.complete(1_000_000, 1_000_000)

    async with Machine(up.url, overclaim).connected(), httpx.AsyncClient(base_url=up.url, timeout=60.0) as client:
        body = ASK | {"stream": True, "max_tokens": 500}
        await client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key.secret}"})
    (usage,) = up.books.rows(
        "SELECT prompt_tokens, completion_tokens FROM usage_entries WHERE account_id = %s", key.account_id
    )
    delivered_bytes_and_slack = 2 + 16
    assert usage[1] == delivered_bytes_and_slack
    assert usage[0] < 400  # the bytes of the prompt and the template's overhead
    assert up.books.value(
        "SELECT count(*) FROM events WHERE topic = 'InferenceRequest.UsageClaimClamped'"
        " AND convert_from(state, 'UTF8')::jsonb ->> 'claimed_completion_tokens' = '1000000'"
    )
    up.books.require_balanced()


async def test_a_consumer_who_leaves_before_the_first_content_pays_nothing(up: Coordinator) -> None:
    key = up.books.open_account(1_000_000)
    accepted, cancelled = asyncio.Event(), asyncio.Event()

    async def wait_for_cancel(machine: Machine, job: Job) -> None:
        await job.accept()
        accepted.set()
        await job.cancelled.wait()
        cancelled.set()

    async with Machine(up.url, wait_for_cancel).connected(), httpx.AsyncClient(base_url=up.url) as client:
        request = asyncio.create_task(
            client.post("/v1/chat/completions", json=ASK, headers={"Authorization": f"Bearer {key.secret}"})
        )
        await accepted.wait()
        request.cancel()
        async with asyncio.timeout(20):
            await cancelled.wait()
        released = ["RequestReleased"]
        await asyncio.to_thread(eventually, lambda: up.books.ends_of(key.account_id) == released, "the release")
    assert up.books.balance(key.account_id) == (1_000_000, 0, 0)


async def _read_first_content_and_leave(up: Coordinator, secret: str) -> None:
    body = ASK | {"stream": True}
    async with (
        httpx.AsyncClient(base_url=up.url, timeout=60.0) as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"}) as got,
    ):
        async for line in got.aiter_lines():
            if "one two" in line:
                return


def test_an_agent_that_is_terminated_finishes_what_it_accepted(up: Coordinator, endless_agent: Process) -> None:
    key = up.books.open_account(5_000_000)
    lines: list[str] = []
    body = ASK | {"model": "endless", "max_tokens": 1_000, "stream": True}
    with up.client(key.secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == 4:
                endless_agent.popen.terminate()
    assert "data: [DONE]" in lines
    assert endless_agent.popen.wait(30) == 0
    assert up.books.ends_of(key.account_id) == ["RequestSettled"]
