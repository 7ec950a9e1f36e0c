"""A coordinator that is told to stop: open requests finish, a second signal aborts them, and nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest

from tests.support.machine import MODEL, Job, Machine, answer_at_once
from tests.support.processes import coordinator, eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_aborts_what_is_open_and_still_ends_in_order(
    tmp_path: Path, database: str, signum: signal.Signals
) -> None:
    accepted = asyncio.Event()

    async def never_answer(machine: Machine, job: Job) -> None:
        await job.accept()
        accepted.set()
        await asyncio.Event().wait()

    with coordinator(tmp_path, database=database) as running:
        key = running.books.open_account(1_000_000)
        async with (
            Machine(running.url, never_answer).connected(),
            httpx.AsyncClient(base_url=running.url, timeout=60.0) as client,
        ):
            headers = {"Authorization": f"Bearer {key.secret}"}
            request = asyncio.create_task(client.post("/v1/chat/completions", json=ASK, headers=headers))
            await accepted.wait()
            running.process.popen.send_signal(signum)
            await asyncio.to_thread(eventually, lambda: "stopping when 1 open" in running.process.log(), "the drain")
            running.process.popen.send_signal(signum)
            answer = await request
            # Whoever is impatient does not cut the end short.
            running.process.popen.send_signal(signum)

        assert await asyncio.to_thread(running.process.popen.wait, 40) == 0
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "service_unavailable"
        assert running.books.ends_of(key.account_id) == ["RequestReleased"]
        assert running.books.balance(key.account_id) == (1_000_000, 0, 0)
        assert "Traceback" not in running.process.log()


async def test_what_is_open_when_a_coordinator_stops_may_finish_and_is_paid(tmp_path: Path, database: str) -> None:
    accepted, may_finish = asyncio.Event(), asyncio.Event()

    async def hold_back(machine: Machine, job: Job) -> None:
        accepted.set()
        await may_finish.wait()
        await answer_at_once(machine, job)

    with coordinator(tmp_path, database=database) as running:
        key = running.books.open_account(1_000_000)
        async with (
            Machine(running.url, hold_back).connected(),
            httpx.AsyncClient(base_url=running.url, timeout=60.0) as client,
        ):
            headers = {"Authorization": f"Bearer {key.secret}"}
            request = asyncio.create_task(client.post("/v1/chat/completions", json=ASK, headers=headers))
            await accepted.wait()
            running.process.popen.send_signal(signal.SIGTERM)
            await asyncio.to_thread(eventually, lambda: "stopping when 1 open" in running.process.log(), "the drain")
            may_finish.set()
            answer = await request

        assert await asyncio.to_thread(running.process.popen.wait, 40) == 0
        assert answer.status_code == 200
        assert running.books.ends_of(key.account_id) == ["RequestSettled"]
        assert "Traceback" not in running.process.log()
