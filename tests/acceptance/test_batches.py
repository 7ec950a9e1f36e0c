"""Batches with the official package against the real coordinator."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from tests.support.machine import Job, Machine, answer_at_once
from tests.support.processes import Coordinator, Key, coordinator, eventually

ENDED = ("completed", "failed", "expired", "cancelled")
CREDIT = 5_000_000


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(CREDIT)


@pytest.fixture
def model() -> str:
    """A model of this test alone."""
    return f"batched-{secrets.token_hex(4)}"


@pytest.fixture
async def client(up: Coordinator, key: Key) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as connected:
        yield connected


def line(custom_id: str, model: str, text: str = "hello", **body: Any) -> dict[str, Any]:
    asked = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


async def start(client: openai.AsyncOpenAI, content: bytes, **more: Any) -> Batch:
    file = await client.files.create(file=("work.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(60):
        while batch.status not in ENDED:
            await asyncio.sleep(0.1)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def results(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    text = (await client.files.content(file_id)).text
    return {entry["custom_id"]: entry for entry in map(json.loads, text.splitlines())}


async def _echo(machine: Machine, job: Job) -> None:
    await answer_at_once(machine, job, ("You said ", job.body["messages"][-1]["content"]))


async def test_files_go_in_and_results_come_out_at_half_price_and_no_word_rests_in_the_clear(
    up: Coordinator, key: Key, client: openai.AsyncOpenAI, model: str
) -> None:
    canary = f"canary-{secrets.token_hex(12)}"
    content = jsonl(
        line(f"a-{canary}", model, canary),
        line("b", model, temperature=9),
        line("c", "no-such-model"),
        line("d", model, stream=True),
        line("e", model, "another"),
    )
    async with Machine(up.url, _echo, model=model, concurrency=4).connected() as machine:
        batch = await start(client, content, metadata={"job": canary})
        assert (batch.object, batch.status, batch.metadata) == ("batch", "in_progress", {"job": canary})
        done = await ended(client, batch)
    assert done.status == "completed"
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (5, 2, 3)
    assert len(machine.jobs) == 2
    answers, errors = await results(client, done.output_file_id), await results(client, done.error_file_id)
    assert answers.keys() == {f"a-{canary}", "e"}
    body = answers[f"a-{canary}"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == f"You said {canary}"
    assert body["usage"]["cost_micro_usd"] == 100
    assert {name: entry["response"]["status_code"] for name, entry in errors.items()} == {"b": 400, "c": 404, "d": 400}
    assert errors["b"]["response"]["body"]["error"]["param"] == "temperature"
    assert up.books.balance(key.account_id) == (CREDIT - 200, 0, 0)
    quotes = up.books.rows(
        "SELECT convert_from(state, 'UTF8')::jsonb -> 'quote' FROM events"
        " WHERE topic = 'InferenceRequest.RequestAdmitted'"
        " AND convert_from(state, 'UTF8')::jsonb ->> 'account_id' = %s",
        key.account_id,
    )
    assert {(q["input_price"], q["output_price"], q["source"]) for (q,) in quotes} == {  # type: ignore[index]
        (25_000, 100_000, "default_batch")
    }
    tables = up.books.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    everything = str([up.books.rows(f'SELECT t::text FROM "{table}" t') for (table,) in tables])
    assert canary not in everything
    assert canary.encode().hex() not in everything
    assert canary not in up.process.log()
    held = "SELECT count(*) FROM batches WHERE wrapped_key IS NOT NULL AND finished_at IS NOT NULL"
    assert up.books.value(held) == 0
    assert up.books.value("SELECT count(*) FROM batch_lines WHERE state = 'done' AND sealed IS NOT NULL") == 0


async def test_files_can_be_looked_at_listed_and_deleted_by_their_key_alone(
    up: Coordinator, client: openai.AsyncOpenAI
) -> None:
    content = jsonl(line("a", "m"), line("b", "m", "grüße"))
    made = [await client.files.create(file=(f"{name}.jsonl", content), purpose="batch") for name in ("one", "two")]
    assert (made[0].filename, made[0].bytes, made[0].purpose) == ("one.jsonl", len(content), "batch")
    assert [file.id async for file in client.files.list(limit=1)] == [made[1].id, made[0].id]
    assert (await client.files.retrieve(made[0].id)).filename == "one.jsonl"
    assert (await client.files.content(made[0].id)).content == content
    other = up.books.open_account(0)
    stranger = client.with_options(api_key=other.secret)
    for reach in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError):
            await reach(made[0].id)
    with pytest.raises(openai.NotFoundError):
        await stranger.batches.create(
            input_file_id=made[0].id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert [file async for file in stranger.files.list()] == []
    assert (await client.files.delete(made[0].id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made[0].id)


async def test_batches_are_listed_and_hidden_from_others(up: Coordinator, client: openai.AsyncOpenAI) -> None:
    first = await start(client, jsonl(line("a", "no-such-model")))
    second = await start(client, jsonl(line("a", "no-such-model")))
    assert [batch.id async for batch in client.batches.list(limit=1)] == [second.id, first.id]
    stranger = client.with_options(api_key=up.books.open_account(0).secret)
    with pytest.raises(openai.NotFoundError):
        await stranger.batches.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        await stranger.batches.cancel(first.id)
    assert [batch async for batch in stranger.batches.list()] == []


@pytest.mark.parametrize("file_id", ["file-0", "file-\0", "\0"])
async def test_an_id_that_no_file_has_is_not_found_however_it_looks(client: openai.AsyncOpenAI, file_id: str) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file_id)
    with pytest.raises(openai.NotFoundError):
        await client.files.delete(file_id)
    with pytest.raises(openai.NotFoundError) as refused:
        await client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    assert refused.value.param == "input_file_id"


async def test_a_file_with_wrong_lines_makes_a_failed_batch_that_says_which(client: openai.AsyncOpenAI) -> None:
    right = line("a", "m")
    wrong = [right | {"url": "/v1/messages"}, right | {"method": "GET"}, right | {"custom_id": 5}, right, [1]]
    batch = await start(client, jsonl(right, *wrong) + b"no json\n")
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.line, error.param) for error in batch.errors.data or ()] == [
        (2, "url"),
        (3, "method"),
        (4, "custom_id"),
        (5, "custom_id"),
        (6, None),
        (7, None),
    ]


async def test_a_batch_waits_while_interactive_requests_run_and_goes_on_when_machines_are_idle(
    up: Coordinator, key: Key, client: openai.AsyncOpenAI, model: str
) -> None:
    release = asyncio.Event()

    async def answer(machine: Machine, job: Job) -> None:
        if job.body["messages"][-1]["content"] == "now":
            await job.accept()
            await release.wait()
        await answer_at_once(machine, job)

    async with Machine(up.url, answer, model=model, concurrency=4).connected() as machine:
        ask: Any = line("x", model, "now")["body"]
        interactive = asyncio.create_task(client.chat.completions.create(**ask))
        while not machine.jobs:
            await asyncio.sleep(0.01)
        batch = await start(client, jsonl(line("a", model, "later")))
        await asyncio.sleep(2.5)  # several looks of the runner
        assert len(machine.jobs) == 1
        assert (await client.batches.retrieve(batch.id)).status == "in_progress"
        release.set()
        await interactive
        assert (await ended(client, batch)).status == "completed"
    assert up.books.ends_of(key.account_id) == ["RequestSettled", "RequestSettled"]


async def test_a_cancelled_batch_starts_nothing_more(
    up: Coordinator, key: Key, client: openai.AsyncOpenAI, model: str
) -> None:
    release = asyncio.Event()

    async def answer(machine: Machine, job: Job) -> None:
        await job.accept()
        await release.wait()
        await answer_at_once(machine, job)

    async with Machine(up.url, answer, model=model).connected() as machine:
        batch = await start(client, jsonl(*(line(f"l{number}", model) for number in range(6))))
        while not machine.jobs:
            await asyncio.sleep(0.01)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        release.set()
        done = await ended(client, batch)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    assert len(await results(client, done.output_file_id)) == len(machine.jobs) < 6
    assert up.books.balance(key.account_id) == (CREDIT - 100 * len(machine.jobs), 0, 0)


async def test_what_is_not_done_in_time_is_in_the_error_file(
    up: Coordinator, key: Key, client: openai.AsyncOpenAI, model: str
) -> None:
    async with Machine(up.url, model=model).connected():
        pass  # it was here once, so the model is known for a moment and then missing
    batch = await start(client, jsonl(line("a", "darkbloom-tiny", max_tokens=1), line("b", "darkbloom-tiny")))
    up.books.rows("UPDATE batches SET expires_at = now() - interval '1 s' WHERE key_id = %s RETURNING 1", key.key_id)
    done = await ended(client, batch)
    assert done.status == "expired"
    errors = await results(client, done.error_file_id)
    assert {entry["error"]["code"] for entry in errors.values()} == {"batch_expired"}
    assert up.books.balance(key.account_id) == (CREDIT, 0, 0)


async def test_a_repeated_upload_or_batch_with_an_idempotency_key_is_one(
    up: Coordinator, key: Key, client: openai.AsyncOpenAI
) -> None:
    content = jsonl(line("a", "no-such-model"))
    twice = {"Idempotency-Key": "once"}
    files = [
        await client.files.create(file=("w.jsonl", content), purpose="batch", extra_headers=twice) for _ in range(2)
    ]
    assert files[0].id == files[1].id
    batches = [
        await client.batches.create(
            input_file_id=files[0].id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers=twice,
        )
        for _ in range(2)
    ]
    assert batches[0].id == batches[1].id


@pytest.mark.parametrize("moment", ["while a machine answers", "after it answered"])
async def test_a_coordinator_that_is_killed_charges_no_line_twice_and_loses_none(tmp_path: Path, moment: str) -> None:
    reached, kept = asyncio.Event(), asyncio.Event()

    async def answer(machine: Machine, job: Job) -> None:
        if len(machine.jobs) == 2 and not kept.is_set():
            if moment == "after it answered":  # the draft is kept then, and nothing is settled
                await job.accept()
                message = {"role": "assistant", "content": "lost"}
                whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
                await job.chunk("data: " + json.dumps(whole))
            reached.set()
            await asyncio.Event().wait()
        await answer_at_once(machine, job, (job.body["messages"][-1]["content"],))

    names = ["one", "two", "three"]
    content = jsonl(*(line(name, "darkbloom-tiny", name) for name in names))
    with coordinator(tmp_path) as running:
        key = await asyncio.to_thread(running.books.open_account, CREDIT)
        async with Machine(running.url, answer).connected():
            async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key.secret) as client:
                batch = await start(client, content)
                await asyncio.wait_for(reached.wait(), 60)
                if moment == "after it answered":
                    drafts = "SELECT count(*) FROM batch_lines WHERE draft IS NOT NULL"
                    await asyncio.to_thread(eventually, lambda: running.books.value(drafts), "the draft to be kept")
                running.process.kill_9()
    kept.set()
    with coordinator(tmp_path) as again:
        async with Machine(again.url, answer).connected():
            async with openai.AsyncOpenAI(base_url=f"{again.url}/v1", api_key=key.secret) as client:
                done = await ended(client, batch)
                answers = await results(client, done.output_file_id)
        texts = {name: entry["response"]["body"]["choices"][0]["message"]["content"] for name, entry in answers.items()}
        assert texts == {name: name for name in names}
        assert again.books.ends_of(key.account_id).count("RequestSettled") == 3
        assert again.books.balance(key.account_id) == (CREDIT - 300, 0, 0)
        again.books.require_balanced()


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ({"purpose": (None, b"fine-tune"), "file": ("a", b"x")}, "purpose"),
        ({"file": ("a", b"x")}, "purpose"),
        ({"purpose": (None, b"batch")}, "file"),
        ({"purpose": (None, b"batch"), "file": (None, b"x")}, "file"),
        ({"purpose": (None, b"batch"), "file": ("a", b"")}, "file"),
        ({"purpose": (None, b"batch"), "file": ("a" * 300, b"x")}, "file"),
        ({"purpose": (None, b"batch"), "file": ("a", b"x"), "expires_after[seconds]": (None, b"5")}, None),
    ],
)
async def test_a_wrong_upload_is_refused_by_name(
    up: Coordinator, key: Key, parts: dict[str, Any], param: str | None
) -> None:
    async with httpx.AsyncClient(base_url=up.url, headers={"X-Api-Key": key.secret}) as plain:
        refused = await plain.post("/v1/files", files=parts)
        no_form = await plain.post("/v1/files", json={})
        batch = await plain.post("/v1/batches", json={"endpoint": "/v1/messages"})
    assert refused.status_code == no_form.status_code == 400
    assert refused.json()["error"]["param"] == (param or "expires_after[seconds]")
    assert batch.json()["error"]["param"] == "endpoint"
