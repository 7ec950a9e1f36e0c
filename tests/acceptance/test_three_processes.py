"""The same system on PostgreSQL and RabbitMQ servers, its three parts in processes of their own."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator
from pathlib import Path

import openai
import pika.exceptions
import pytest

from tests.conftest import POSTGRES_URL, missing_service
from tests.support.machine import MODEL
from tests.support.parts import Parts, broker_of_its_own, channel_to
from tests.support.processes import Coordinator, agent, eventually

ASK = [{"role": "user", "content": "What is a hold?"}]


@pytest.fixture
def parts(tmp_path: Path, database: str) -> Generator[Parts, None, None]:
    if not database.startswith(POSTGRES_URL.rpartition("/")[0]):
        missing_service(f"PostgreSQL at {POSTGRES_URL}")
    with broker_of_its_own() as broker:
        running = Parts(tmp_path, database, broker)
        try:
            yield running
        finally:
            running.stop()


def test_a_paid_answer_across_three_processes(parts: Parts, tmp_path: Path, tiny_model: Path) -> None:
    for part in ("schedule", "project"):
        parts.start(part)
    gateway = parts.coordinator(parts.start("serve", "--port", "0"))
    key = gateway.books.open_account(5_000_000)
    with agent(tmp_path, gateway.url, tiny_model):
        eventually(lambda: MODEL in gateway.models(key.secret), "the agent to be routable")
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key.secret, max_retries=0)
        whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0)
        stream = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert text == whole.choices[0].message.content
    assert gateway.books.ends_of(key.account_id) == ["RequestSettled"] * 2
    balance, _, held = gateway.books.balance(key.account_id)
    assert (balance, held) == (4_999_800, 0)
    eventually(lambda: gateway.books.value("SELECT count(*) FROM provider_earnings") == 2, "the earnings projection")
    eventually(lambda: gateway.books.value("SELECT count(*) FROM journal_lines") == 6, "the journal projection")
    gateway.books.require_balanced()


def test_no_prompt_enters_a_message_a_table_or_a_log(parts: Parts, tmp_path: Path, tiny_model: Path) -> None:
    gateway = parts.coordinator(parts.start("serve", "--port", "0"))
    key = gateway.books.open_account(5_000_000)
    canary = f"canary-{secrets.token_hex(12)}"
    with agent(tmp_path, gateway.url, tiny_model) as machine:
        eventually(lambda: MODEL in gateway.models(key.secret), "the agent to be routable")
        # Without a scheduler the message stays in its queue, where it can be looked at.
        with gateway.client(key.secret) as client:
            answers: list[int] = []
            ask = {"model": MODEL, "messages": [{"role": "user", "content": canary}], "max_tokens": 8}
            asking = threading.Thread(
                target=lambda: answers.append(client.post("/v1/chat/completions", json=ask).status_code)
            )
            asking.start()
            body = eventually(lambda: _peek(parts.env["DARKBLOOM_BROKER_URL"], "dispatch"), "the dispatch message")
            assert MODEL.encode() in body
            assert canary.encode() not in body
            parts.start("schedule")
            asking.join(60)
            assert answers == [200]
        bad = {"model": MODEL, "messages": [{"role": "user", "content": canary}], "stop": [canary, 7]}
        with gateway.client(key.secret) as client:
            assert client.post("/v1/chat/completions", json=bad).status_code == 400
            assert client.post("/v1/chat/completions", content=f'{{"model": "{canary}'.encode()).status_code == 400
        logs = parts.logs() + machine.log()
    assert "chat/completions" in logs
    assert canary not in logs
    assert canary not in everything_stored(gateway)


def test_a_gateway_killed_with_a_request_open_has_it_released_by_the_scheduler(
    parts: Parts, tmp_path: Path, endless_model: Path
) -> None:
    parts.start("schedule")
    gateway = parts.coordinator(parts.start("serve", "--port", "0"))
    key = gateway.books.open_account(5_000_000)
    with agent(tmp_path, gateway.url, endless_model):
        eventually(lambda: "endless" in gateway.models(key.secret), "the agent to be routable")
        body = {"model": "endless", "messages": ASK, "max_tokens": 20_000, "stream": True}
        with gateway.client(key.secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            gateway.process.kill_9()
        eventually(lambda: gateway.books.ends_of(key.account_id) == ["RequestReleased"], "the sweeper", 30)
    assert gateway.books.balance(key.account_id) == (5_000_000, 0, 0)
    gateway.books.require_balanced()


def _peek(broker: str, queue: str) -> bytes | None:
    """A message of a queue, left where it is; None while there is none."""
    channel = channel_to(broker)
    try:
        method, _, body = channel.basic_get(queue)
        if method is None:
            return None
        channel.basic_nack(method.delivery_tag, requeue=True)
        return bytes(body)
    except pika.exceptions.ChannelClosedByBroker:  # the gateway declares the queue with its first message
        return None
    finally:
        channel.connection.close()


def everything_stored(coordinator: Coordinator) -> str:
    """Every row of every table, as text; binary columns as the text that they hold."""
    parts = []
    for (table,) in coordinator.books.rows(
        "SELECT quote_ident(table_name) FROM information_schema.tables WHERE table_schema = 'public'"
    ):
        for row in coordinator.books.rows(f"SELECT * FROM {table}"):
            parts.extend(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in row)
    return "\n".join(parts)
