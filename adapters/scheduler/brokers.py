"""Which broker the scheduler runs on, and how a gateway hands it a message.

The same actors run on both. Queues: ``dispatch`` is what a consumer waits for, ``settle`` ends requests, ``slow`` is
everything that nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from queue import Empty, Full, Queue
from typing import Any, Protocol

import dramatiq
import msgspec
import pika
import pika.exceptions
from dramatiq import Broker, Encoder, Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.encoder import MessageData
from dramatiq.errors import DecodeError
from dramatiq.middleware import AgeLimit, Middleware, ShutdownNotifications, TimeLimit

from adapters.scheduler.embedded import EmbeddedBroker, QueueIsFull
from adapters.scheduler.middleware import BoundedRetries

log = logging.getLogger(__name__)

DISPATCH_QUEUE = "dispatch"
SETTLE_QUEUE = "settle"
SLOW_QUEUE = "slow"
QUEUES = (DISPATCH_QUEUE, SETTLE_QUEUE, SLOW_QUEUE)

PUBLISH_WAITING_MAX = 10_000
PUBLISH_SECONDS_MAX = 15.0
CONNECTION_SERVICE_SECONDS = 5.0
"""A publisher that has nothing to send still answers the broker's heartbeats this often."""


class SchedulerUnavailable(Exception):
    """The scheduler's broker takes no messages just now."""


class BrokerUnusable(Exception):
    """The broker cannot be used."""


class BrokerAddressMalformed(BrokerUnusable):
    """DARKBLOOM_BROKER_URL must look like amqp://user:password@host:5672/, with %40 for an @ in the password."""


class BrokerUnreachable(BrokerUnusable):
    """RabbitMQ does not answer; check DARKBLOOM_BROKER_URL and that the server runs."""


class FastJson(Encoder):
    """Dramatiq's own format, several times as fast."""

    def encode(self, data: MessageData) -> bytes:
        return msgspec.json.encode(data)

    def decode(self, data: bytes) -> MessageData:
        try:
            return msgspec.json.decode(data, type=MessageData)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DecodeError("a message is not JSON", None, error) from None  # type: ignore[no-untyped-call]


def make_broker(url: str) -> Broker:
    """The embedded broker for an empty URL, else RabbitMQ; set as Dramatiq's global one, with its encoder.

    Publishes are confirmed by RabbitMQ, because without that a lost node loses messages that were acknowledged to us.

    Raises:
        BrokerUnusable: one of the reasons above.
    """
    middleware: list[Middleware] = [
        AgeLimit(max_age=3_600_000),
        TimeLimit(time_limit=60_000),
        ShutdownNotifications(),
        BoundedRetries(),
    ]
    broker: Broker = _make_rabbitmq(url, middleware) if url else EmbeddedBroker(middleware)
    for queue in QUEUES:
        broker.declare_queue(queue)
    dramatiq.set_broker(broker)
    dramatiq.set_encoder(FastJson())
    return broker


def _make_rabbitmq(url: str, middleware: list[Middleware]) -> RabbitmqBroker:
    try:
        parameters = pika.URLParameters(url)
    except (ValueError, LookupError, TypeError):  # whatever pika stumbles over; its texts may repeat the password
        raise BrokerAddressMalformed(BrokerAddressMalformed.__doc__) from None
    parameters.blocked_connection_timeout = PUBLISH_SECONDS_MAX
    broker = RabbitmqBroker(confirm_delivery=True, middleware=middleware)
    broker.parameters = parameters
    try:
        broker.connection.channel()
    except (pika.exceptions.AMQPError, OSError) as error:
        raise BrokerUnreachable(f"{BrokerUnreachable.__doc__} ({type(error).__name__})") from error
    finally:
        del broker.connection
    return broker


class Publisher(Protocol):
    """Hands messages to the broker without blocking an event loop."""

    async def send(self, message: Message[Any]) -> None:
        """Raises SchedulerUnavailable when the broker does not take it."""
        ...

    def close(self) -> None: ...


class DirectPublisher:
    """For the embedded broker, where queueing is an operation in memory."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def send(self, message: Message[Any]) -> None:
        try:
            self._broker.enqueue(message)
        except QueueIsFull as error:
            raise SchedulerUnavailable(SchedulerUnavailable.__doc__) from error

    def close(self) -> None:
        """Nothing to close."""


class ThreadPublisher:
    """For RabbitMQ, whose connections belong to one thread each: one thread publishes for the whole gateway."""

    def __init__(self, broker: RabbitmqBroker) -> None:
        self._broker = broker
        self._waiting: Queue[tuple[Message[Any], Future[None]] | None] = Queue(PUBLISH_WAITING_MAX)
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scheduler-publisher", daemon=True)
        self._thread.start()

    async def send(self, message: Message[Any]) -> None:
        done: Future[None] = Future()
        try:
            with self._closing:
                if self._closed:
                    raise SchedulerUnavailable(SchedulerUnavailable.__doc__)
                self._waiting.put_nowait((message, done))
        except Full:
            raise SchedulerUnavailable(SchedulerUnavailable.__doc__) from None
        try:
            async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                await asyncio.wrap_future(done)
        except TimeoutError as error:
            raise SchedulerUnavailable(SchedulerUnavailable.__doc__) from error

    def close(self) -> None:
        """Publish what was handed over, and take nothing more."""
        with self._closing:
            closed_before, self._closed = self._closed, True
        if not closed_before:
            self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                item = self._waiting.get(timeout=CONNECTION_SERVICE_SECONDS)
            except Empty:
                self._service_connection()
                continue
            if item is None:
                del self._broker.connection
                return
            message, done = item
            if not done.set_running_or_notify_cancel():
                continue  # whoever sent it gave up
            try:
                self._broker.enqueue(message)
                done.set_result(None)
            except Exception as error:  # noqa: BLE001  # the thread must outlive every failure of a connection
                log.warning("could not publish to the broker: %s", type(error).__name__)
                done.set_exception(SchedulerUnavailable(SchedulerUnavailable.__doc__))

    def _service_connection(self) -> None:
        try:
            self._broker.connection.process_data_events()
        except (pika.exceptions.AMQPError, OSError) as error:
            log.info("the publisher's connection to the broker was lost: %s", type(error).__name__)
            del self._broker.connection


def make_publisher(broker: Broker) -> Publisher:
    return ThreadPublisher(broker) if isinstance(broker, RabbitmqBroker) else DirectPublisher(broker)
