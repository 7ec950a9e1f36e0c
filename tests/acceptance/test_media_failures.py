"""Media when machines fail or lie, and what is left of it at rest: scripted machines, real money."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.kinds import EMBEDDING, IMAGE, TRANSCRIPTION, ModelKind
from tests.acceptance.test_three_processes import everything_stored
from tests.support.machine import Job, Machine, make_at_once, png, send_image
from tests.support.processes import Coordinator, Key, eventually

Answer = Callable[[Machine, Job], Awaitable[None]]


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(1_000_000)


@pytest.fixture
async def client(up: Coordinator, key: Key) -> AsyncGenerator[httpx.AsyncClient, None]:
    headers = {"Authorization": f"Bearer {key.secret}"}
    async with httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60) as client:
        yield client


def machine(up: Coordinator, kind: ModelKind, answer: Answer) -> Machine:
    return Machine(up.url, answer, model=f"scripted-{kind}", kind=kind)


def images(**members: Any) -> dict[str, Any]:
    return {"model": "scripted-image", "prompt": "x", "size": "8x8", "response_format": "b64_json", **members}


async def test_a_machine_that_fails_between_two_parts_costs_an_attempt_and_nothing_else(
    up: Coordinator, key: Key, client: httpx.AsyncClient
) -> None:
    answered: list[str] = []

    async def answer(answering: Machine, job: Job) -> None:
        answered.append(job.job_id)
        if len(answered) < 3:
            await job.accept()
            await send_image(job, 0, png(8, 8))
            await job.chunk('data: {"index":1,"bytes":100}')
            await answering.drop()
        else:
            await make_at_once(job)

    async with (
        machine(up, IMAGE, answer).connected(),
        machine(up, IMAGE, answer).connected(),
        machine(up, IMAGE, answer).connected(),
    ):
        done = await client.post("/v1/images/generations", json=images(n=2))
    assert (done.status_code, len(answered)) == (200, 3), done.text
    assert len(done.json()["data"]) == 2
    assert up.books.balance(key.account_id) == (1_000_000 - 3_000, 0, 0)
    assert up.books.ends_of(key.account_id) == ["RequestSettled"]
    up.books.require_balanced()


async def test_the_largest_images_come_through_in_parts(up: Coordinator, key: Key, client: httpx.AsyncClient) -> None:
    noise = secrets.token_bytes(12 * 1024 * 1024)

    async def answer(_: Machine, job: Job) -> None:
        await job.accept()
        for index in range(2):
            await send_image(job, index, png(2_048, 2_048, noise))
        await job.complete(0, 0, units=2 * 2_048 * 2_048)

    async with machine(up, IMAGE, answer).connected():
        done = await client.post("/v1/images/generations", json=images(n=2, size="2048x2048"))
    assert done.status_code == 200, done.text
    assert [base64.b64decode(one["b64_json"]) == png(2_048, 2_048, noise) for one in done.json()["data"]] == [True] * 2
    assert up.books.balance(key.account_id) == (1_000_000 - 2 * 4 * 1_500, 0, 0)


@pytest.mark.parametrize("claimed", [0, 3 * 1_048_576, 2**50])
async def test_what_a_machine_claims_is_bounded_by_what_it_delivered(
    up: Coordinator, key: Key, client: httpx.AsyncClient, claimed: int
) -> None:
    async def answer(_: Machine, job: Job) -> None:
        await job.accept()
        await send_image(job, 0, png(8, 8))
        await job.complete(10**6, 10**6, units=claimed)

    async with machine(up, IMAGE, answer).connected():
        assert (await client.post("/v1/images/generations", json=images())).status_code == 200
    assert up.books.balance(key.account_id) == (1_000_000 - (1_500 if claimed else 100), 0, 0)
    up.books.require_balanced()


async def test_a_machine_that_sends_something_else_is_not_paid(
    up: Coordinator, key: Key, client: httpx.AsyncClient
) -> None:
    async def answer(_: Machine, job: Job) -> None:
        await job.accept()
        await job.chunk("data: no vector")

    async with machine(up, EMBEDDING, answer).connected():
        done = await client.post("/v1/embeddings", json={"model": "scripted-embedding", "input": "x"})
    assert (done.status_code, done.json()["error"]["type"]) == (502, "provider_error")
    assert up.books.balance(key.account_id) == (1_000_000, 0, 0)


async def test_a_consumer_that_leaves_pays_nothing_and_the_machine_is_told(
    up: Coordinator, key: Key, client: httpx.AsyncClient
) -> None:
    begun = asyncio.Event()

    async def answer(_: Machine, job: Job) -> None:
        await job.accept()
        await job.chunk('data: {"index":0,"bytes":100}')
        begun.set()

    async with machine(up, IMAGE, answer).connected() as served:
        asking = asyncio.create_task(client.post("/v1/images/generations", json=images()))
        await begun.wait()
        asking.cancel()
        (job,) = served.jobs.values()
        async with asyncio.timeout(20):
            await job.cancelled.wait()
        await asyncio.to_thread(
            eventually, lambda: up.books.ends_of(key.account_id) == ["RequestReleased"], "the release of the hold"
        )
    assert up.books.balance(key.account_id) == (1_000_000, 0, 0)


async def test_one_engine_makes_one_image_at_a_time_and_the_next_one_waits(
    up: Coordinator, client: httpx.AsyncClient
) -> None:
    at_work = most = 0

    async def answer(_: Machine, job: Job) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await job.accept()
        await asyncio.sleep(0)
        await make_at_once(job)
        at_work -= 1

    async with Machine(up.url, answer, model="scripted-image", kind=IMAGE, concurrency=1).connected():
        done = await asyncio.gather(*(client.post("/v1/images/generations", json=images()) for _ in range(4)))
    assert [one.status_code for one in done] == [200] * 4
    assert most == 1


async def test_nothing_of_a_text_an_image_or_a_sound_is_at_rest_or_in_a_log(
    up: Coordinator, key: Key, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    canary = f"canary-{secrets.token_hex(12)}"

    async def paint(_: Machine, job: Job) -> None:
        await job.accept()
        await send_image(job, 0, png(8, 8, canary.encode()))
        await job.complete(0, 0, units=1_048_576)

    async def hear(_: Machine, job: Job) -> None:
        await job.accept()
        await job.chunk(f'data: {{"text":"{canary}","duration":1.0,"language":"english","segments":[]}}')
        await job.complete(0, 0, units=1_000)

    async def embed(_: Machine, job: Job) -> None:
        await make_at_once(job)

    async with (
        machine(up, IMAGE, paint).connected(),
        machine(up, TRANSCRIPTION, hear).connected(),
        machine(up, EMBEDDING, embed).connected(),
    ):
        kept = {"Idempotency-Key": secrets.token_hex(8)}
        drawn = await client.post("/v1/images/generations", json=images(prompt=canary), headers=kept)
        behind_url = await client.post(
            "/v1/images/generations", json=images(prompt=canary) | {"response_format": "url"}
        )
        heard = await client.post(
            "/v1/audio/transcriptions",
            data={"model": "scripted-transcription", "prompt": canary},
            files={"file": (f"{canary}.wav", canary.encode() * 100)},
        )
        embedded = await client.post("/v1/embeddings", json={"model": "scripted-embedding", "input": canary})
        refused = await client.post("/v1/images/generations", json=images(prompt=canary, size=canary))
        unread = await client.post("/v1/audio/transcriptions", data={"model": canary}, files={"f": canary.encode()})
    assert [one.status_code for one in (drawn, behind_url, heard, embedded)] == [200] * 4
    assert canary in heard.text
    fetched = await client.get(behind_url.json()["data"][0]["url"])
    assert canary.encode() in fetched.content
    assert [one.status_code for one in (refused, unread)] == [400, 400]
    assert canary not in refused.text + unread.text

    encoded = base64.b64encode(canary.encode()).decode().rstrip("=")
    everywhere = everything_stored(up) + up.process.log()
    assert canary not in everywhere
    assert encoded not in everywhere
