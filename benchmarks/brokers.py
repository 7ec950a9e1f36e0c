"""A RabbitMQ for a benchmark, and the round trip that nothing built on Dramatiq can beat.

``python -m benchmarks.brokers URL`` is the other end of that round trip: a worker that answers each message with one.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import dramatiq
import pika
import pika.exceptions
from dramatiq import Broker, Message, Worker

from adapters.scheduler.brokers import make_broker, make_publisher
from adapters.scheduler.worker import IDLE_WAKE_MS

ASKED, ANSWERED = "echo_asked", "echo_answered"
THREADS = 4
ANSWER_SECONDS_MAX = 10.0


@contextmanager
def scratch_vhost(url: str) -> Generator[str | None, None, None]:
    """The URL of a virtual host of its own where one can be made, else the given one; None when nothing answers."""
    try:
        pika.BlockingConnection(pika.URLParameters(url)).close()
    except pika.exceptions.AMQPError:
        yield None
        return
    name = f"darkbloom-benchmark-{secrets.token_hex(4)}"
    user = pika.URLParameters(url).credentials.username
    if _rabbitmqctl("add_vhost", name) and _rabbitmqctl("set_permissions", "-p", name, user, ".*", ".*", ".*"):
        try:
            yield url.rpartition("/")[0] + f"/{name}"
        finally:
            _rabbitmqctl("delete_vhost", name)
    else:
        yield url


def _rabbitmqctl(*words: str) -> bool:
    try:
        return (
            subprocess.run(["rabbitmqctl", "-q", *words], check=False, capture_output=True, timeout=60).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


async def round_trips_ms(broker: Broker, count: int, *, answers_here: bool) -> list[float]:
    """Milliseconds of round trips, one after the other: to an actor, and its answer back into this event loop.

    ``answers_here`` says that the actor runs in this process, else ``python -m benchmarks.brokers`` must run.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()

    def answer() -> None:
        loop.call_soon_threadsafe(arrived.set)

    listened = ASKED if answers_here else ANSWERED
    _register(broker, answer, on=listened)
    worker = Worker(broker, queues={listened}, worker_threads=THREADS, worker_timeout=IDLE_WAKE_MS)
    worker.start()
    publisher = make_publisher(broker)
    took: list[float] = []
    for _ in range(count):
        arrived.clear()
        began = time.perf_counter()
        await publisher.send(_message(ASKED))
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await arrived.wait()
        took.append(1000 * (time.perf_counter() - began))
    publisher.close()
    worker.stop()
    broker.close()
    return took


def _register(broker: Broker, deed: Callable[[], object], *, on: str) -> None:
    for queue in (ASKED, ANSWERED):
        broker.declare_queue(queue)

    def echo() -> None:
        deed()

    dramatiq.actor(broker=broker, queue_name=on, actor_name=on)(echo)


def _message(queue: str) -> Message[None]:
    return Message(queue_name=queue, actor_name=queue, args=(), kwargs={}, options={})


def main() -> None:
    broker = make_broker(sys.argv[1])
    _register(broker, lambda: broker.enqueue(_message(ANSWERED)), on=ASKED)
    worker = Worker(broker, queues={ASKED}, worker_threads=THREADS, worker_timeout=IDLE_WAKE_MS)
    worker.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
