"""Messages that the scheduler gave up: to look at, to run again, or to drop.

They hold ids and sizes, as every message here does. To run one again is harmless: the work of each actor is done once,
whatever comes twice, and an attempt whose time has passed is not dispatched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import pika
import pika.exceptions
from dramatiq import Broker, Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import xq_name

from adapters.scheduler import brokers
from adapters.scheduler.embedded import EmbeddedBroker, QueueIsFull
from domain.errors import ServiceUnavailable

READ_MAX = 10_000
"""So many of a queue are looked through at most, the oldest first."""


class DeadLetter(NamedTuple):
    """``queued_at`` is Unix seconds; ``attempt`` is None for what is not about one."""

    message_id: str
    queue: str
    actor: str
    request_id: str
    attempt: int | None
    queued_at: float


class _Dead(NamedTuple):
    message: Message[Any]
    queue_again: Callable[[Message[Any]], object]
    remove: Callable[[], None]


class DeadLetters:
    """Blocking; called in threads. ``message_ids`` of None means all.

    Raises:
        ServiceUnavailable: the broker does not answer.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def newest(self, limit: int) -> tuple[list[DeadLetter], int]:
        """The newest ones, and how many there are."""
        with self._reading() as letters:
            found = [_letter(dead.message) for dead in letters]
        found.sort(key=lambda letter: letter.queued_at, reverse=True)
        return found[:limit], len(found)

    def replay(self, message_ids: Collection[str] | None) -> int:
        """Queue messages again, as new ones; how many those were."""
        taken = 0
        with self._reading() as letters:
            for dead in _chosen(letters, message_ids):
                dead.queue_again(_anew(dead.message))
                dead.remove()  # only now: what is queued twice does no harm, and what is lost does
                taken += 1
        return taken

    def drop(self, message_ids: Collection[str] | None) -> int:
        """How many those were."""
        taken = 0
        with self._reading() as letters:
            for dead in _chosen(letters, message_ids):
                dead.remove()
                taken += 1
        return taken

    @contextmanager
    def _reading(self) -> Iterator[Iterator[_Dead]]:
        """Dead letters, the oldest of each queue first. What is not removed stays."""
        try:
            if isinstance(self._broker, RabbitmqBroker):
                connection = pika.BlockingConnection(self._broker.parameters)
                try:
                    yield _on_rabbitmq(connection)
                finally:
                    connection.close()  # what was not acknowledged goes back to its place
            else:
                assert isinstance(self._broker, EmbeddedBroker)
                yield _in_memory(self._broker)
        except (pika.exceptions.AMQPError, OSError, QueueIsFull) as error:
            raise ServiceUnavailable("The scheduler's broker does not answer just now; try again.") from error


def _chosen(letters: Iterator[_Dead], message_ids: Collection[str] | None) -> Iterator[_Dead]:
    return (dead for dead in letters if message_ids is None or dead.message.message_id in message_ids)


def _anew(message: Message[Any]) -> Message[Any]:
    """The same work, as if it had just been sent: with its own id and age, and nothing tried yet."""
    return Message(
        queue_name=message.queue_name, actor_name=message.actor_name, args=message.args, kwargs={}, options={}
    )


def _in_memory(broker: EmbeddedBroker) -> Iterator[_Dead]:
    for message in list(broker.dead_letters):
        yield _Dead(message, broker.enqueue, partial(_forget, broker, message))


def _forget(broker: EmbeddedBroker, message: Message[Any]) -> None:
    with suppress(ValueError, IndexError):  # newer ones pushed it out, or came just now and it stays for once
        broker.dead_letters.remove(message)


def _on_rabbitmq(connection: Any) -> Iterator[_Dead]:
    for queue in brokers.QUEUES:
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            waiting = channel.queue_declare(xq_name(queue), passive=True).method.message_count
        except pika.exceptions.ChannelClosedByBroker:  # nothing was ever sent there
            continue
        for _ in range(min(waiting, READ_MAX)):
            method, _properties, body = channel.basic_get(xq_name(queue))
            if method is None:
                break
            yield _Dead(
                Message.decode(body), partial(_publish, channel), partial(channel.basic_ack, method.delivery_tag)
            )


def _publish(channel: Any, message: Message[Any]) -> None:
    """On the connection at hand: the broker's own ones belong to threads that stay."""
    properties = pika.BasicProperties(delivery_mode=2)
    channel.basic_publish("", message.queue_name, message.encode(), properties, mandatory=True)


def _letter(message: Message[Any]) -> DeadLetter:
    job = message.args[0] if message.args else {}
    return DeadLetter(
        message_id=message.message_id,
        queue=message.queue_name,
        actor=message.actor_name,
        request_id=str(job.get("request_id", "")),
        attempt=job.get("attempt"),
        queued_at=message.message_timestamp / 1000,
    )
