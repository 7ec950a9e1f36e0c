"""Sealed requests with unmodified SDKs against the real coordinator, and with the JavaScript client."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from clients.darkbloom_sealed import AsyncSealedTransport, CoordinatorKey, Exchange, SealedTransport
from domain.kinds import IMAGE
from tests.support.machine import Job, Machine, answer_at_once
from tests.support.node import run_client
from tests.support.processes import Coordinator, Key


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def model() -> str:
    """A model of this test alone."""
    return f"sealed-{secrets.token_hex(4)}"


@pytest.fixture
def canary() -> str:
    return f"canary-{secrets.token_hex(12)}"


class Wire:
    """What somebody sees who ends the TLS in front of the coordinator."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._inner = library.AsyncHTTPTransport()
        self.seen = bytearray()

    async def handle_async_request(self, request: Any) -> Any:
        self.seen += await request.aread()
        response = await self._inner.handle_async_request(request)
        self.seen += str(response.headers.raw).encode()
        self.seen += await response.aread()
        return self._library.Response(response.status_code, headers=response.headers, content=response.content)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._inner.aclose()


def ask(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 64}


async def _echo(machine: Machine, job: Job) -> None:
    await answer_at_once(machine, job, ("You said ", job.body["messages"][-1]["content"]))


async def test_both_sdks_work_sealed_and_the_wire_the_log_and_the_database_hold_no_word(
    up: Coordinator, key: Key, model: str, canary: str
) -> None:
    wire, wire2 = Wire(httpx), Wire(httpx2)
    carrier = httpx.AsyncClient(transport=AsyncSealedTransport(up.url, wire), timeout=60)
    carrier2 = httpx2.AsyncClient(transport=AsyncSealedTransport(up.url, wire2, library=httpx2), timeout=60)
    async with Machine(up.url, _echo, model=model).connected(), carrier, carrier2:
        client = openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, http_client=carrier, max_retries=0)
        other = anthropic.AsyncAnthropic(base_url=up.url, api_key=key.secret, http_client=carrier2, max_retries=0)
        whole = await client.chat.completions.create(**ask(model, canary))
        assert whole.choices[0].message.content == f"You said {canary}"
        text = ""
        async for chunk in await client.chat.completions.create(**ask(model, canary), stream=True):
            text += chunk.choices[0].delta.content or ""
        assert text == f"You said {canary}"
        completed = await client.completions.create(model=model, prompt=canary, max_tokens=64)
        assert canary in completed.choices[0].text
        async with client.responses.stream(model=model, input=canary) as stream:
            assert canary in (await stream.get_final_response()).output_text
        message = await other.messages.create(**ask(model, canary))
        assert canary in message.content[0].text
        async with other.messages.stream(**ask(model, canary)) as events:
            assert canary in await events.get_final_text()
        counted = await other.messages.count_tokens(model=model, messages=ask(model, canary)["messages"])
        assert counted.input_tokens > 0
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(**ask("no-such-model-" + canary, canary))
        assert refused.value.code == "model_not_found"
        assert model in [entry.id async for entry in await client.models.list()]  # plain, as everybody's
    assert canary.encode() not in wire.seen + wire2.seen
    assert canary not in up.process.log()
    assert canary not in _everything(up)


def _everything(up: Coordinator) -> str:
    """All rows of all tables as text."""
    tables = up.books.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    rows = [up.books.rows(f'SELECT t::text FROM "{table}" t') for (table,) in tables]
    events = up.books.rows("SELECT convert_from(state, 'UTF8') FROM events")
    return str(rows) + str(events)


async def test_a_reply_that_is_given_again_is_sealed_to_the_one_who_asks(
    up: Coordinator, key: Key, model: str, canary: str
) -> None:
    headers = {"X-Api-Key": key.secret, "Idempotency-Key": "retry-1"}
    sealed = httpx.AsyncClient(transport=AsyncSealedTransport(up.url), base_url=up.url, headers=headers, timeout=60)
    plain = httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60)
    async with Machine(up.url, _echo, model=model).connected() as machine, sealed, plain:
        for body in (ask(model, canary), ask(model, canary) | {"stream": True}):
            path = "/v1/messages" if "stream" in body else "/v1/chat/completions"
            first, again = [await sealed.post(path, json=body) for _ in range(2)]
            assert first.content == again.content
            assert canary in first.text
            assert again.headers["idempotent-replayed"] == "true"
        assert len(machine.jobs) == 2
        # Whoever has the key and guesses the body does not get the sealed answer in plain text.
        asked_plainly = await plain.post("/v1/chat/completions", json=ask(model, canary))
        assert "idempotent-replayed" not in asked_plainly.headers
        assert len(machine.jobs) == 3
    assert canary not in _everything(up)


async def test_a_sealed_request_that_is_sent_again_is_refused_and_costs_nothing(
    up: Coordinator, key: Key, model: str
) -> None:
    async with httpx.AsyncClient(base_url=up.url, headers={"X-Api-Key": key.secret}, timeout=60) as client:
        shown = (await client.get("/v1/encryption-key")).json()
        exchange = Exchange(CoordinatorKey(shown["kid"], base64.b64decode(shown["public_key"])))
        envelope = exchange.seal(json.dumps(ask(model, "hello")).encode())
        sealed = {"Content-Type": "application/eigeninference-sealed+json"}
        async with Machine(up.url, model=model).connected():
            first = await client.post("/v1/chat/completions", content=envelope, headers=sealed)
            again = await client.post("/v1/chat/completions", content=envelope, headers=sealed)
            elsewhere = await client.post("/v1/messages", content=envelope, headers=sealed)
    assert first.status_code == 200
    assert (again.status_code, again.json()["error"]["type"]) == (400, "decryption_failed")
    assert elsewhere.json()["error"]["code"] == "decryption_failed"
    assert up.books.balance(key.account_id)[0] == 5_000_000 - 100


def test_the_synchronous_transport_serves_the_sync_sdk(up: Coordinator, key: Key) -> None:
    with httpx.Client(transport=SealedTransport(up.url), timeout=60) as http_client:
        client = openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, http_client=http_client, max_retries=0)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="m", messages=[])
        assert refused.value.param == "messages"
        wrong = client.with_options(api_key="eigeninference-wrong")
        with pytest.raises(openai.AuthenticationError):
            wrong.chat.completions.create(**ask("m", "x"))


async def test_images_that_were_asked_for_sealed_come_in_the_answer_and_never_behind_a_url(
    up: Coordinator, key: Key, model: str
) -> None:
    async with (
        httpx.AsyncClient(transport=AsyncSealedTransport(up.url), timeout=60) as http_client,
        Machine(up.url, model=model, kind=IMAGE).connected(),
    ):
        client = openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, http_client=http_client, max_retries=0)
        made = await client.images.generate(model=model, prompt="a heron", response_format="url", size="64x64")
    assert made.data is not None
    assert (made.data[0].url, base64.b64decode(made.data[0].b64_json or "")[:4]) == (None, b"\x89PNG")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_javascript_client_asks_sealed(
    up: Coordinator, key: Key, model: str, canary: str, stream: bool
) -> None:
    async with Machine(up.url, _echo, model=model).connected():
        asked = {"url": up.url, "key": key.secret, "path": "/v1/chat/completions"}
        answer = await asyncio.to_thread(run_client, "ask", **asked, body=ask(model, canary) | {"stream": stream})
        refused = await asyncio.to_thread(run_client, "ask", **asked, body={"model": model, "messages": 5})
        pinned = await asyncio.to_thread(run_client, "ask", **asked, body={}, kid="0" * 16)
    assert answer["status"] == 200
    assert canary in answer["text"]
    assert answer["type"] == ("text/event-stream" if stream else "application/json")
    assert answer["text"].endswith("data: [DONE]\n\n") is stream
    assert canary not in str(answer["onTheWire"])
    assert (refused["status"], json.loads(refused["text"])["error"]["param"]) == (400, "messages")
    assert "pinned" in pinned["refused"]
