"""Two gateways, the consumer on one and the machine on the other: processes, on PostgreSQL and RabbitMQ servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest

from domain.dispatch import SECRET_HEADER
from domain.relay import JOB_PATH, JOBS_PATH, VIOLATIONS_PATH
from domain.routing.hedging import SAMPLES_MIN
from tests.acceptance.test_three_processes import everything_stored
from tests.conftest import POSTGRES_URL, missing_service
from tests.support.machine import MODEL, Job, Machine, answer_at_once
from tests.support.parts import Parts, broker_of_its_own
from tests.support.processes import Coordinator, Key, agent, eventually

CREDIT = 5_000_000


class Site(NamedTuple):
    """``near`` is the gateway of the consumer, ``far`` the other one."""

    parts: Parts
    near: Coordinator
    far: Coordinator
    key: Key

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key.secret}"}
        return httpx.AsyncClient(base_url=self.near.url, headers=headers, timeout=60.0)

    async def until(self, look: Any, what: str, seconds: float = 30.0) -> None:
        await asyncio.to_thread(eventually, look, what, seconds)

    async def until_offered(self) -> None:
        await self.until(lambda: MODEL in self.near.models(self.key.secret), "the model at the near gateway")

    def ends(self) -> list[str]:
        return self.near.books.ends_of(self.key.account_id)

    def balance(self) -> tuple[object, ...]:
        return self.near.books.balance(self.key.account_id)


@pytest.fixture
def site(tmp_path: Path, database: str) -> Generator[Site, None, None]:
    if not database.startswith(POSTGRES_URL.rpartition("/")[0]):
        missing_service(f"PostgreSQL at {POSTGRES_URL}")
    with broker_of_its_own() as broker:
        parts = Parts(tmp_path, database, broker)
        try:
            processes = [parts.start("serve", "--port", "0", name=name) for name in ("near", "far")]
            parts.start("schedule")
            near, far = map(parts.coordinator, processes)
            yield Site(parts, near, far, near.books.open_account(CREDIT))
        finally:
            parts.stop()


def asking(text: str = "hello", *, stream: bool = False) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
        "stream": stream,
    }


def content_in(lines: list[str]) -> str:
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))


async def test_an_answer_comes_whole_and_streamed_from_a_machine_on_another_gateway(
    site: Site, tmp_path: Path, tiny_model: Path
) -> None:
    canary = f"canary-{secrets.token_hex(12)}"
    with agent(tmp_path, site.far.url, tiny_model) as machine:
        await site.until_offered()
        async with site.client() as client:
            whole = await client.post("/v1/chat/completions", json=asking(canary) | {"temperature": 0})
            streamed = await client.post("/v1/chat/completions", json=asking(canary, stream=True) | {"temperature": 0})
        logs = site.parts.logs() + machine.log()

    assert (whole.status_code, streamed.status_code) == (200, 200)
    text = whole.json()["choices"][0]["message"]["content"]
    assert text
    assert content_in(streamed.text.splitlines()) == text
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert site.ends() == ["RequestSettled"] * 2
    assert site.balance()[2] == 0
    site.near.books.require_balanced()
    # The other gateway carried the bytes, and neither it nor anybody else kept what they say.
    assert site.far.process.log().count("/internal/machines/") >= 2
    assert canary not in logs
    assert canary not in everything_stored(site.near)


async def test_a_consumer_who_leaves_stops_the_machine_on_another_gateway_and_pays_what_was_delivered(
    site: Site,
) -> None:
    cancelled = asyncio.Event()

    async def until_cancelled(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.delta("Hello")
        await job.cancelled.wait()
        cancelled.set()
        await job.complete(7, 1)

    async with Machine(site.far.url, until_cancelled).connected():
        async with site.client() as client:
            await _read_first_content(client)
        async with asyncio.timeout(10):
            await cancelled.wait()
        await site.until(lambda: site.ends() == ["RequestSettled"], "the settlement")
    assert site.balance() == (CREDIT - 100, 0, 0)
    await site.until(lambda: site.near.books.value("SELECT count(*) FROM claims") == 0, "the slot to be given back")
    site.near.books.require_balanced()


async def test_a_gateway_killed_before_the_first_content_costs_an_attempt_and_not_the_request(site: Site) -> None:
    asked = asyncio.Event()

    async def hold_back(machine: Machine, job: Job) -> None:
        await job.accept()
        asked.set()
        await asyncio.Event().wait()

    async with Machine(site.far.url, hold_back).connected(), site.client() as client:
        request = asyncio.create_task(client.post("/v1/chat/completions", json=asking()))
        await asked.wait()
        async with Machine(site.near.url).connected():
            site.far.process.kill_9()
            answer = await request

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello, world"
    assert site.ends() == ["RequestSettled"]
    assert site.balance() == (CREDIT - 100, 0, 0)
    site.near.books.require_balanced()


async def test_a_gateway_killed_mid_answer_ends_the_stream_with_an_error_and_costs_nothing(site: Site) -> None:
    async def begin(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.delta("Hello")
        await asyncio.Event().wait()

    async with Machine(site.far.url, begin).connected(), site.client() as client:
        body = asking(stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if "Hello" in line:
                    break
            site.far.process.kill_9()
            rest = [line async for line in lines]

    assert any('"error"' in line and "provider_error" in line for line in rest), rest
    assert site.ends() == ["RequestReleased"]
    assert site.balance() == (CREDIT, 0, 0)
    site.near.books.require_balanced()


async def test_a_gateway_that_lost_its_lease_stops_its_machines_and_the_request_goes_elsewhere(site: Site) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def hold_back(machine: Machine, job: Job) -> None:
        await job.accept()
        asked.set()
        await job.cancelled.wait()
        cancelled.set()

    async with Machine(site.far.url, hold_back).connected(), site.client() as client:
        request = asyncio.create_task(client.post("/v1/chat/completions", json=asking()))
        await asked.wait()
        async with Machine(site.near.url).connected():
            site.near.books.rows(
                "UPDATE gateways SET lease_until = now() - interval '1 second'"
                " WHERE internal_url = %s RETURNING gateway_id",
                site.far.url,
            )
            answer = await request
        async with asyncio.timeout(10):
            await cancelled.wait()

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello, world"
    assert site.ends() == ["RequestSettled"]
    assert "lost its lease" in site.far.process.log()
    site.near.books.require_balanced()


async def test_a_gateway_that_stops_lets_the_jobs_on_its_machines_finish(site: Site) -> None:
    asked, may_finish = asyncio.Event(), asyncio.Event()

    async def hold_back(machine: Machine, job: Job) -> None:
        asked.set()
        await may_finish.wait()
        await answer_at_once(machine, job)

    async with Machine(site.far.url, hold_back).connected(), site.client() as client:
        request = asyncio.create_task(client.post("/v1/chat/completions", json=asking()))
        await asked.wait()
        site.far.process.popen.send_signal(signal.SIGTERM)
        await site.until(lambda: "stopping when 1 open" in site.far.process.log(), "the drain")
        may_finish.set()
        answer = await request
        assert await asyncio.to_thread(site.far.process.popen.wait, 40) == 0

    assert answer.status_code == 200
    assert site.ends() == ["RequestSettled"]
    site.near.books.require_balanced()


async def test_a_slot_that_comes_free_wakes_a_consumer_of_another_gateway(site: Site) -> None:
    asked, may_finish = asyncio.Event(), asyncio.Event()

    async def hold_back(machine: Machine, job: Job) -> None:
        asked.set()
        await may_finish.wait()
        await answer_at_once(machine, job)

    async with Machine(site.far.url, hold_back, concurrency=1).connected(), site.client() as client:
        far = httpx.AsyncClient(base_url=site.far.url, headers=client.headers, timeout=60.0)
        async with far:
            first = asyncio.create_task(far.post("/v1/chat/completions", json=asking()))
            await asked.wait()
            second = asyncio.create_task(client.post("/v1/chat/completions", json=asking()))
            waiting = "SELECT count(*) FROM waiters"
            await site.until(lambda: site.near.books.value(waiting) == 1, "the second request to wait")
            may_finish.set()
            answers = [await first, await second]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert site.ends() == ["RequestSettled"] * 2


async def test_a_late_machine_on_another_gateway_is_overtaken_by_one_of_this_and_stopped(site: Site) -> None:
    held: list[Job] = []
    may_be_late = asyncio.Event()

    async def answer(machine: Machine, job: Job) -> None:
        if may_be_late.is_set() and not held:
            held.append(job)
            await job.accept()
            await job.cancelled.wait()
        else:
            await answer_at_once(machine, job)

    async with Machine(site.far.url, answer).connected(), Machine(site.near.url).connected(), site.client() as client:
        for _ in range(SAMPLES_MIN):
            assert (await client.post("/v1/chat/completions", json=asking(stream=True))).status_code == 200
        may_be_late.set()
        while not held:  # the near machine may be asked first
            raced = await client.post("/v1/chat/completions", json=asking(stream=True))
            assert raced.status_code == 200
            assert content_in(raced.text.splitlines()) == "Hello, world"
        async with asyncio.timeout(10):
            await held[0].cancelled.wait()

    assert raced.headers["X-Inference-Job-ID"] != held[0].job_id
    overtaken = "SELECT count(*) FROM events WHERE topic = 'InferenceRequest.JobFailed'"
    assert site.near.books.value(overtaken) == 1
    assert set(site.ends()) == {"RequestSettled"}
    await site.until(lambda: site.near.books.value("SELECT count(*) FROM claims") == 0, "the slots to be given back")
    site.near.books.require_balanced()


async def test_a_machine_that_breaks_the_protocol_is_untrusted_on_its_own_gateway(site: Site) -> None:
    async def in_the_clear(machine: Machine, job: Job) -> None:
        await job.accept()
        await machine.send_raw(
            json.dumps({"type": "inference_response_chunk", "request_id": job.job_id, "data": "data: {}"})
        )

    async with Machine(site.far.url, in_the_clear).connected() as machine, site.client() as client:
        answer = await client.post("/v1/chat/completions", json=asking())
        await site.until(lambda: machine.status is not None and machine.status.status == "untrusted", "the verdict")
    assert answer.status_code >= 500
    assert site.ends() == ["RequestReleased"]
    assert site.balance() == (CREDIT, 0, 0)


async def test_only_who_knows_the_secret_reaches_the_machines_of_a_gateway(site: Site) -> None:
    async with Machine(site.far.url).connected() as machine, httpx.AsyncClient(base_url=site.far.url) as client:
        session_id = str(site.near.books.value("SELECT session_id FROM fleet"))
        paths = {
            "POST": (JOBS_PATH.format(session_id=session_id), VIOLATIONS_PATH.format(session_id=session_id)),
            "DELETE": (JOB_PATH.format(session_id=session_id, job_id=uuid4()),),
        }
        for headers in ({}, {SECRET_HEADER: "wrong"}, {"Authorization": f"Bearer {site.key.secret}"}):
            for method, each in paths.items():
                for path in each:
                    answer = await client.request(method, path, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        assert not machine.jobs
        assert machine.status is not None
        assert machine.status.status == "online"


async def test_the_machines_of_a_gateway_with_another_secret_are_out_of_reach(site: Site) -> None:
    stranger = site.parts.start("serve", "--port", "0", name="stranger", env={"DARKBLOOM_INTERNAL_SECRET": "another"})
    url = site.parts.coordinator(stranger).url
    async with Machine(url).connected() as machine, Machine(url).connected() as sibling, site.client() as client:
        refused = await client.post("/v1/chat/completions", json=asking())
        async with Machine(site.near.url).connected():
            answers = [await client.post("/v1/chat/completions", json=asking()) for _ in range(4)]
    assert refused.status_code == 502
    assert refused.json()["error"]["message"].startswith("No machine answered after 3 attempts;")
    assert [answer.status_code for answer in answers] == [200] * 4
    assert (machine.jobs, sibling.jobs) == ({}, {})
    assert site.ends() == ["RequestReleased", *["RequestSettled"] * 4]
    assert site.balance() == (CREDIT - 400, 0, 0)


async def test_a_dead_gateway_with_many_machines_takes_one_attempt_of_a_request(site: Site) -> None:
    async with contextlib.AsyncExitStack() as machines:
        for _ in range(4):
            await machines.enter_async_context(Machine(site.far.url, concurrency=64).connected())
        near = await machines.enter_async_context(Machine(site.near.url, concurrency=1).connected())
        client = await machines.enter_async_context(site.client())
        site.far.process.kill_9()
        answer = await client.post("/v1/chat/completions", json=asking())
        assert len(near.jobs) == 1
    assert answer.status_code == 200
    assert site.ends() == ["RequestSettled"]


async def _read_first_content(client: httpx.AsyncClient) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=asking(stream=True)) as answer:
        async for line in answer.aiter_lines():
            if "Hello" in line:
                return
    raise AssertionError("the stream ended without content")
