"""The scheduler's broker under test: either kind, with queues that no other process reads."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import pika
import pytest
from dramatiq import Broker, Message, Middleware
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from adapters.scheduler import actors, brokers
from adapters.scheduler.embedded import EmbeddedBroker
from adapters.scheduler.middleware import BoundedRetries
from adapters.scheduler.worker import SchedulerWorker
from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob

SWEEP_SECONDS = 3_600.0
"""A worker sends one sweep when it starts, and no other while a test lasts."""


class Failure(Exception):
    """What goes wrong in an actor of a test. Its text must not travel."""

    def __init__(self) -> None:
        super().__init__("a secret that only this exception knows")


class ScriptedScheduler:
    """Stands behind the product's actors. ``work`` may fail; every call is counted and kept."""

    def __init__(self) -> None:
        self.done: list[Job | str] = []
        self.calls: Counter[str] = Counter()
        self.work: Callable[[int], None] = lambda _: None
        self._lock = threading.Lock()

    def dispatch(self, job: DispatchJob) -> None:
        self._run("dispatch", job)

    def settle(self, job: SettleJob) -> None:
        self._run("settle", job)

    def release(self, job: ReleaseJob) -> None:
        self._run("release", job)

    def sweep(self) -> int:
        self._run("sweep", "sweep")
        return 0

    def _run(self, what: str, job: Job | str) -> None:
        with self._lock:
            self.calls[what] += 1
            call = self.calls[what]
        self.work(call)
        with self._lock:
            self.done.append(job)

    def jobs(self) -> list[Job]:
        return [one for one in self.done if not isinstance(one, str)]


class Bodies(Middleware):
    """Keeps the bytes of every message that goes to the broker."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        self.seen.append(message.encode())


class Site:
    """One process's broker with the product's actors on it, whose retries come without their pauses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.broker = brokers.make_broker(url)
        self.scheduler = ScriptedScheduler()
        self.bodies = Bodies()
        self.broker.add_middleware(self.bodies)
        [self.retries] = [one for one in self.broker.middleware if isinstance(one, BoundedRetries)]
        self.retries.min_backoff_ms, self.retries.max_backoff_ms = 1, 2
        actors.register(self.broker, self.scheduler)  # type: ignore[arg-type]  # it has what the actors call

    @contextmanager
    def working(self, threads: int = 2) -> Generator[SchedulerWorker, None, None]:
        worker = SchedulerWorker(self.broker, threads=threads, sweep_seconds=SWEEP_SECONDS)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()

    def send(self, job: Job) -> None:
        self.broker.enqueue(actors.message_of(job))

    def dead_letters(self, queue: str) -> list[bytes]:
        """The bodies of what was given up on a queue. On RabbitMQ they are taken out."""
        if isinstance(self.broker, EmbeddedBroker):
            return [message.encode() for message in self.broker.dead_letters if message.queue_name == queue]
        found: list[bytes] = []
        with rabbitmq_channel(self.url) as channel:
            while True:
                method, _, body = channel.basic_get(f"{queue}.XQ", auto_ack=True)
                if method is None:
                    return found
                found.append(body)


@contextmanager
def rabbitmq_channel(url: str) -> Generator[Any, None, None]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def rabbitmq_answers(url: str) -> bool:
    try:
        with rabbitmq_channel(url):
            return True
    except (pika.exceptions.AMQPError, OSError):
        return False


@contextmanager
def own_queues(patch: pytest.MonkeyPatch, url: str) -> Generator[None, None, None]:
    """Give the product's queues names of this test's own, so that nobody else's worker takes from them."""
    patch.setattr("dramatiq.broker.global_broker", None)
    patch.setattr("adapters.scheduler.worker.IDLE_WAKE_MS", 20)  # so that a worker of a test stops at once
    token = secrets.token_hex(4)
    own = {queue: f"{queue}_{token}" for queue in brokers.QUEUES}
    for name in ("DISPATCH_QUEUE", "SETTLE_QUEUE", "SLOW_QUEUE"):
        renamed = own[getattr(brokers, name)]
        patch.setattr(brokers, name, renamed)
        patch.setattr(actors, name, renamed)
    patch.setattr(brokers, "QUEUES", tuple(own.values()))
    patch.setattr(actors, "_ROUTES", {job: (own[queue], actor) for job, (queue, actor) in actors._ROUTES.items()})
    try:
        yield
    finally:
        if url:
            with rabbitmq_channel(url) as channel:
                for queue in own.values():
                    for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
                        channel.queue_delete(name)


def close_connections(broker: Broker) -> None:
    """What a test's own thread opened on RabbitMQ."""
    if isinstance(broker, RabbitmqBroker):
        with suppress(pika.exceptions.AMQPError):
            broker.close()
