"""A machine that is late is raced by another one, on a running coordinator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from domain.routing.hedging import SAMPLES_MIN
from tests.support.machine import MODEL, Job, Machine, answer_at_once
from tests.support.processes import coordinator, eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "stream": True}
CREDIT = 5_000_000


async def test_a_late_machine_is_overtaken_stopped_and_never_paid(tmp_path: Path, database: str) -> None:
    with coordinator(tmp_path, database=database) as up:
        key = up.books.open_account(CREDIT)
        late: list[Job] = []
        may_be_late = asyncio.Event()

        async def answer(machine: Machine, job: Job) -> None:
            if may_be_late.is_set() and not late:
                late.append(job)
                await job.accept()
                await job.cancelled.wait()
            else:
                await answer_at_once(machine, job)

        async with (
            Machine(up.url, answer).connected(),
            Machine(up.url, answer).connected(),
            httpx.AsyncClient(
                base_url=up.url, headers={"Authorization": f"Bearer {key.secret}"}, timeout=60.0
            ) as client,
        ):
            for _ in range(SAMPLES_MIN):
                assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
            may_be_late.set()
            raced = await client.post("/v1/chat/completions", json=ASK)
            async with asyncio.timeout(10):
                await late[0].cancelled.wait()
            winner = raced.headers["X-Inference-Job-ID"]

        assert raced.status_code == 200
        assert raced.text.rstrip().endswith("data: [DONE]")
        assert winner != late[0].job_id
        outcomes = up.books.rows(
            "SELECT split_part(topic, '.', 2), convert_from(state, 'UTF8')::jsonb ->> 'reason' FROM events"
            " WHERE convert_from(state, 'UTF8')::jsonb ->> 'job_id' IN (%s, %s) AND topic LIKE 'InferenceRequest.%%'"
            " ORDER BY position",
            winner,
            late[0].job_id,
        )
        assert outcomes == [
            ("JobDispatched", None),
            ("JobDispatched", None),
            ("JobFailed", "overtaken"),
            ("JobCompleted", None),
            ("RequestSettled", None),
        ]
        assert up.books.ends_of(key.account_id) == ["RequestSettled"] * (SAMPLES_MIN + 1)
        assert up.books.balance(key.account_id) == (CREDIT - 100 * (SAMPLES_MIN + 1), 0, 0)
        slots = "SELECT count(*) FROM claims"
        await asyncio.to_thread(eventually, lambda: up.books.value(slots) == 0, "the slots to be given back")
        assert "a second machine is asked" in up.process.log()
