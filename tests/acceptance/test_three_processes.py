"""The same system on PostgreSQL and RabbitMQ servers, its three parts in processes of their own."""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from collections.abc import Generator
from pathlib import Path

import openai
import pika
import pika.exceptions
import pytest

from adapters.scheduler.brokers import QUEUES
from tests.conftest import POSTGRES_URL, RABBITMQ_URL, missing_service
from tests.support.machine import MODEL
from tests.support.processes import Coordinator, Process, agent, darkbloomd, eventually

ASK = [{"role": "user", "content": "What is a hold?"}]


def _channel() -> pika.adapters.blocking_connection.BlockingChannel:
    return pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)).channel()


@contextlib.contextmanager
def rabbitmq() -> Generator[pika.adapters.blocking_connection.BlockingChannel, None, None]:
    """A channel to the broker, with the product's queues gone before and after."""
    try:
        channel = _channel()
    except pika.exceptions.AMQPError:
        missing_service(f"RabbitMQ at {RABBITMQ_URL}")
    try:
        _delete_queues(channel)
        yield channel
        _delete_queues(channel)
    finally:
        channel.connection.close()


def _delete_queues(channel: pika.adapters.blocking_connection.BlockingChannel) -> None:
    for queue in QUEUES:
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
            channel.queue_delete(name)


class Parts:
    """Starts the three processes on one database and one broker."""

    def __init__(self, folder: Path, database: str) -> None:
        self._folder = folder
        self.env = {
            "DARKBLOOM_DATABASE_URL": database,
            "DARKBLOOM_BROKER_URL": RABBITMQ_URL,
            "DARKBLOOM_INTERNAL_SECRET": secrets.token_hex(16),
            "DARKBLOOM_LEASE_SECONDS": "2",
            "DARKBLOOM_LEASE_RENEW_SECONDS": "0.5",
            "DARKBLOOM_LEASE_GRACE_SECONDS": "1",
            "DARKBLOOM_SWEEP_SECONDS": "0.5",
        }
        self._started: list[Process] = []

    def start(self, *words: str) -> Process:
        """Start one of them. It is not waited for, so that several get ready together."""
        process = Process(words[0], darkbloomd(*words), self._folder, self.env)
        self._started.append(process)
        return process

    def stop(self) -> None:
        running = [process for process in self._started if process.popen.poll() is None]
        for process in running:
            process.popen.send_signal(signal.SIGTERM)
        for process in running:
            process.terminate()

    def logs(self) -> str:
        return "".join(process.log() for process in self._started)


@pytest.fixture
def parts(tmp_path: Path, database: str) -> Generator[Parts, None, None]:
    if not database.startswith(POSTGRES_URL.rpartition("/")[0]):
        missing_service(f"PostgreSQL at {POSTGRES_URL}")
    with rabbitmq():
        running = Parts(tmp_path, database)
        try:
            yield running
        finally:
            running.stop()


def test_a_paid_answer_across_three_processes(parts: Parts, tmp_path: Path, tiny_model: Path) -> None:
    for part in ("schedule", "project"):
        parts.start(part)
    gateway = Coordinator(parts.start("serve", "--port", "0"), parts.env["DARKBLOOM_DATABASE_URL"])
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
    gateway = Coordinator(parts.start("serve", "--port", "0"), parts.env["DARKBLOOM_DATABASE_URL"])
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
            body = eventually(lambda: _peek("dispatch"), "the dispatch message")
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
    gateway = Coordinator(parts.start("serve", "--port", "0"), parts.env["DARKBLOOM_DATABASE_URL"])
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


def _peek(queue: str) -> bytes | None:
    """A message of a queue, left where it is; None while there is none."""
    channel = _channel()
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
