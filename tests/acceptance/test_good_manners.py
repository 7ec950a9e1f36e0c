"""Idempotency keys, rate limits, prices and costs as a consumer meets them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psycopg
import pytest

from tests.conftest import database_url
from tests.support.machine import MODEL, Job, Machine, answer_at_once
from tests.support.processes import Coordinator, Key, coordinator

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def name() -> str:
    """A model of this test alone."""
    return f"polite-{secrets.token_hex(4)}"


def client_of(up: Coordinator, key: Key, idempotency_key: str = "") -> httpx.AsyncClient:
    headers = {"X-Api-Key": key.secret} | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
    return httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60)


# --- idempotency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"stream": True}),
        ("/v1/messages", {}),
        ("/v1/messages", {"stream": True}),
        ("/v1/responses", {"stream": True}),
    ],
)
async def test_the_first_answer_is_given_again_and_paid_once(
    up: Coordinator, key: Key, name: str, path: str, more: dict[str, Any]
) -> None:
    body = ASK | {"model": name} | more
    async with Machine(up.url, model=name).connected() as machine, client_of(up, key, "retry-1") as client:
        first = await client.post(path, json=body)
        again = await client.post(path, content=json.dumps(body, indent=4))  # the same request in other bytes
        assert len(machine.jobs) == 1
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-inference-job-id"] == first.headers["x-inference-job-id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert up.books.balance(key.account_id)[0] == 5_000_000 - 100


async def test_another_request_with_the_same_key_is_refused(up: Coordinator, key: Key, name: str) -> None:
    async with Machine(up.url, model=name).connected(), client_of(up, key, "retry-1") as client:
        assert (await client.post("/v1/chat/completions", json=ASK | {"model": name})).status_code == 200
        other = await client.post("/v1/chat/completions", json=ASK | {"model": name, "temperature": 0})
        elsewhere = await client.post("/v1/messages", json=ASK | {"model": name})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"
    assert elsewhere.status_code == 200  # a key belongs to one path


async def test_a_second_request_while_the_first_one_runs_is_told_to_wait(up: Coordinator, key: Key, name: str) -> None:
    release = asyncio.Event()

    async def wait(machine: Machine, job: Job) -> None:
        await release.wait()
        await answer_at_once(machine, job)

    async with Machine(up.url, wait, model=name).connected() as machine, client_of(up, key, "retry-1") as client:
        first = asyncio.create_task(client.post("/v1/chat/completions", json=ASK | {"model": name}))
        while not machine.jobs:
            await asyncio.sleep(0.01)
        second = await client.post("/v1/chat/completions", json=ASK | {"model": name})
        release.set()
        assert (await first).status_code == 200
        third = await client.post("/v1/chat/completions", json=ASK | {"model": name})
    assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_in_flight")
    assert second.headers["retry-after"] == "1"
    assert third.content == (await first).content


async def test_an_error_is_not_kept(up: Coordinator, key: Key, name: str) -> None:
    async with client_of(up, key, "retry-1") as client:
        assert (await client.post("/v1/chat/completions", json=ASK | {"model": name})).status_code == 404
        async with Machine(up.url, model=name).connected():
            answer = await client.post("/v1/chat/completions", json=ASK | {"model": name})
            while answer.status_code == 409:  # the failed one is just giving its claim up
                answer = await client.post("/v1/chat/completions", json=ASK | {"model": name})
            assert answer.status_code == 200


async def test_a_kept_answer_is_only_there_for_the_key_that_got_it(up: Coordinator, key: Key, name: str) -> None:
    marker = f"canary{secrets.token_hex(8)}"

    async def answer(machine: Machine, job: Job) -> None:
        await answer_at_once(machine, job, (marker,))

    other = up.books.open_account(5_000_000)
    async with Machine(up.url, answer, model=name).connected() as machine:
        for who in (key, other):
            async with client_of(up, who, "retry-1") as client:
                answered = await client.post("/v1/chat/completions", json=ASK | {"model": name})
                assert marker in answered.text
                assert "idempotent-replayed" not in answered.headers
        assert len(machine.jobs) == 2
    stored = json.dumps([str(row) for row in up.books.rows("SELECT t::text FROM replies t")])
    assert marker not in stored
    assert marker.encode().hex() not in stored
    assert "retry-1" not in stored


async def test_a_made_key_is_not_made_twice(up: Coordinator, key: Key) -> None:
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        connection.execute("UPDATE api_keys SET scopes = '{keys}' WHERE key_id = %s", (key.key_id,))
    async with client_of(up, key, "retry-1") as client:
        first, again = [await client.post("/v1/auth/keys", json={"name": "ci"}) for _ in range(2)]
        assert first.json() == again.json()
        assert [entry["name"] for entry in (await client.get("/v1/auth/keys")).json()["data"]] == ["ci", "test"]


@pytest.mark.parametrize("idempotency_key", ["", "x" * 256, "two words"])
def test_an_idempotency_key_has_1_to_255_characters(up: Coordinator, key: Key, idempotency_key: str) -> None:
    with up.client(key.secret) as client:
        answer = client.post(
            "/v1/chat/completions", json=ASK | {"model": MODEL}, headers={"Idempotency-Key": idempotency_key}
        )
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]["message"]


# --- costs and prices ------------------------------------------------------------------------------------------------


async def test_what_an_answer_cost_is_in_its_usage_and_under_its_id(up: Coordinator, key: Key, name: str) -> None:
    other = up.books.open_account(0)
    async with Machine(up.url, model=name).connected(), client_of(up, key) as client:
        answer = (await client.post("/v1/chat/completions", json=ASK | {"model": name})).json()
        message = (await client.post("/v1/messages", json=ASK | {"model": name})).json()
        assert answer["usage"]["cost_micro_usd"] == message["usage"]["cost_micro_usd"] == 100
        for answer_id in (answer["id"], message["id"], answer["id"].removeprefix("chatcmpl-")):
            generation = (await client.get(f"/v1/generations/{answer_id}")).json()
            assert (generation["id"], generation["model"]) == (answer_id, name)
            assert (generation["prompt_tokens"], generation["completion_tokens"]) == (7, 3)
            assert (generation["cost_micro_usd"], generation["cost_usd"]) == (100, "0.000100")
        for unknown in ("chatcmpl-nothing", "msg_00000000000000000000000000000000"):
            missing = await client.get(f"/v1/generations/{unknown}")
            assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found")
    with up.client(other.secret) as client_of_another:
        assert client_of_another.get(f"/v1/generations/{answer['id']}").status_code == 404


MESSAGES = [{"role": "user", "content": "hello " * 200}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/messages", {"messages": MESSAGES}),
        ("/v1/responses", {"input": MESSAGES}),
        ("/v1/completions", {"prompt": MESSAGES[0]["content"]}),
    ],
)
async def test_what_a_machine_remembered_of_the_prompt_is_cheaper_in_every_dialect(
    up: Coordinator, name: str, path: str, body: dict[str, Any]
) -> None:
    key, claims = up.books.open_account(5_000_000), iter((0, 600, 1_100))

    async def remember(_: Machine, job: Job) -> None:
        await job.accept()
        await job.whole({"message": {"role": "assistant", "content": "Hello again. " * 50}})
        await job.complete(1_000, 500, cached_tokens=next(claims))

    costs, counted = [], []
    async with Machine(up.url, remember, model=name).connected(), client_of(up, key) as client:
        for _ in range(3):
            answer = (await client.post(path, json=body | {"model": name, "max_tokens": 512})).json()
            costs.append(answer["usage"]["cost_micro_usd"])
            generation = (await client.get(f"/v1/generations/{answer['id']}")).json()
            assert (generation["prompt_tokens"], generation["cost_micro_usd"]) == (1_000, costs[-1])
            counted.append(generation.get("cached_tokens"))
        entries = (await client.get("/v1/payments/usage")).json()["usage"]
    # 1,000 prompt tokens at 50,000 a million, or half of it, and 500 of the answer at 200,000.
    assert costs == [50 + 100, 20 + 15 + 100, 25 + 100]
    assert counted == [None, 600, 1_000]
    assert [entry.get("cached_tokens") for entry in reversed(entries)] == counted
    assert up.books.balance(key.account_id)[0] == 5_000_000 - sum(costs)
    up.books.require_balanced()


def test_prices_and_the_catalog_are_public(up: Coordinator) -> None:
    with up.client() as client:
        pricing = client.get("/v1/pricing").json()
        catalog = client.get("/v1/models/catalog").json()["models"]
        kinds = ("text", "embedding", "image", "transcription", "video")
        by_kind = {kind: client.get(f"/v1/models/catalog?type={kind}").json()["models"] for kind in kinds}
    assert sorted((one for of_kind in by_kind.values() for one in of_kind), key=lambda one: one["id"]) == catalog
    assert all(one["model_type"] == kind for kind, of_kind in by_kind.items() for one in of_kind)
    assert by_kind["image"]
    assert by_kind["video"] == []
    models = [price["model"] for price in pricing["prices"]]
    assert models == sorted(models)
    assert {
        "model": "qwen3.5-27b-claude-opus-8bit",
        "input_price": 100_000,
        "cache_read_price": 50_000,
        "output_price": 780_000,
        "input_usd": "$0.1000",
        "cache_read_usd": "$0.0500",
        "output_usd": "$0.7800",
    } in pricing["prices"]
    assert (pricing["fallback_input_usd"], pricing["fallback_output_price"]) == ("$0.0500", 200_000)
    assert (pricing["fallback_cache_read_price"], pricing["fallback_cache_read_usd"]) == (25_000, "$0.0250")
    trinity = next(one for one in by_kind["text"] if one["id"].endswith("Trinity-Mini-8bit"))
    assert trinity["pricing"] == {
        "prompt": "0.000000023",
        "completion": "0.000000075",
        "input_cache_read": "0.0000000115",
    }
    assert pricing["minimum_charge_micro_usd"] == 100
    assert {
        "model": "flux_2_klein_9b_q8p.ckpt",
        "price_per_image": 2_500,
        "price_usd": "$0.0025",
        "unit": "per image (1024x1024)",
    } in pricing["image_prices"]
    assert pricing["transcription_prices"] == [
        {
            "model": "whisper-large-v3-turbo",
            "price_per_minute": 1_000,
            "price_usd": "$0.0010",
            "unit": "per audio-minute",
        }
    ]
    assert [entry["id"] for entry in catalog] == sorted(entry["id"] for entry in catalog)
    assert {"id", "s3_name", "display_name", "model_type", "size_gb", "min_ram_gb", "active"} <= catalog[0].keys()


# --- rate limits -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, migrated_template: str
) -> Generator[Coordinator, None, None]:
    """``darkbloomd up`` with limits so slow that no test waits for them to fill."""
    database = f"darkbloom_test_limited_{secrets.token_hex(4)}"
    limits = {
        "DARKBLOOM_RATE_LIMIT_RPS": "0.001",
        "DARKBLOOM_RATE_LIMIT_BURST": "3",
        "DARKBLOOM_RATE_LIMIT_TOKENS_PER_MINUTE": "1000",
        "DARKBLOOM_FINANCIAL_RATE_LIMIT_RPS": "0.001",
        "DARKBLOOM_FINANCIAL_RATE_LIMIT_BURST": "1",
        "DARKBLOOM_WRONG_CREDENTIALS_PER_MINUTE": "5",
    }
    folder: Path = tmp_path_factory.mktemp("limited")
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{database}" TEMPLATE "{migrated_template}"')
        with coordinator(folder, database=database_url(postgres_server, database), env=limits) as running:
            yield running
        admin.execute(f'DROP DATABASE "{database}" WITH (FORCE)')


async def test_an_account_that_asks_too_often_gets_the_sdks_rate_limit_error(limited: Coordinator) -> None:
    key = limited.books.open_account(5_000_000)
    async with (
        Machine(limited.url).connected(),
        openai.AsyncOpenAI(base_url=f"{limited.url}/v1", api_key=key.secret, max_retries=0) as client,
        anthropic.AsyncAnthropic(base_url=limited.url, api_key=key.secret, max_retries=0) as other,
    ):
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, **ASK)
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
        assert raw.headers["x-ratelimit-remaining-requests"] == "2"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
        assert raw.headers["x-ratelimit-limit-tokens"] == "1000"
        message = await other.messages.with_raw_response.create(model=MODEL, **ASK)
        assert message.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert message.headers["anthropic-ratelimit-tokens-limit"] == "1000"
        await client.chat.completions.create(model=MODEL, **ASK)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model=MODEL, **ASK)
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.response.headers["retry-after"] == "60"
        assert refused.value.response.headers["x-ratelimit-reset"].isdigit()
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(anthropic.RateLimitError) as refused_too:
            await other.messages.create(model=MODEL, **ASK)
        assert refused_too.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
        await client.models.list()  # reading is not limited
    assert limited.books.balance(key.account_id) == (5_000_000 - 300, 0, 0)


async def test_tokens_are_limited_by_what_was_really_used(limited: Coordinator) -> None:
    key = limited.books.open_account(5_000_000)
    async with Machine(limited.url).connected(), client_of(limited, key) as client:
        first = await client.post("/v1/chat/completions", json=ASK | {"model": MODEL, "max_tokens": 900})
        second = await client.post("/v1/chat/completions", json=ASK | {"model": MODEL, "max_tokens": 900})
        third = await client.post("/v1/chat/completions", json=ASK | {"model": MODEL, "max_tokens": 990})
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
    assert "tokens" in third.json()["error"]["message"]


def test_managing_keys_and_wrong_credentials_are_limited(limited: Coordinator) -> None:
    key = limited.books.open_account(0)
    with psycopg.connect(limited.books.dsn, autocommit=True) as connection:
        connection.execute("UPDATE api_keys SET scopes = '{keys}' WHERE key_id = %s", (key.key_id,))
    with limited.client(key.secret) as client:
        assert [client.post("/v1/auth/keys").status_code for _ in range(2)] == [200, 429]
    with limited.client("eigeninference-wrong") as client:
        assert [client.get("/v1/models").status_code for _ in range(6)] == [401] * 5 + [429]
    with limited.client(key.secret) as client:
        assert client.get("/v1/models").status_code == 200  # a right one still gets in
