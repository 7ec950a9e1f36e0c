"""The broker between gateways and schedulers: it may lose, repeat, delay and reorder whatever it carries.

The messages, the actors and the retries are the product's own. Only the queues and the threads that empty them are
simulated.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from random import Random
from typing import Any

import dramatiq
import psycopg
from dramatiq import Broker, Message, MessageProxy
from dramatiq.middleware import AgeLimit, SkipMessage, TimeLimit

from adapters.scheduler.brokers import QUEUES, SchedulerUnavailable
from adapters.scheduler.middleware import BoundedRetries
from domain.errors import DarkbloomError
from tests.simulation.network import BROKER, Network
from tests.simulation.processes import Process, run_synchronous

log = logging.getLogger(__name__)


class Queues:
    """All queues together. Shares are between 0 and 1."""

    def __init__(self, network: Network, chance: Random) -> None:
        self._network = network
        self._chance = chance
        self._ready: deque[bytes] = deque()
        self._idle: dict[asyncio.Future[bytes], None] = {}
        self._unconfirmed: dict[Process, list[bytes]] = {}
        self._purges = 0
        self._under_way = 0
        self.lost_share = 0.0
        self.repeated_share = 0.0
        self.late_share = 0.0
        self.dead_letters: list[str] = []

    def __len__(self) -> int:
        return len(self._ready) + self._under_way

    def publish(self, raw: bytes, delay_seconds: float = 0.0) -> None:
        if self._chance.random() < self.lost_share:
            return
        for _ in range(2 if self._chance.random() < self.repeated_share else 1):
            seconds = delay_seconds + self._network.delay()
            if self._chance.random() < self.late_share:
                seconds += self._chance.uniform(0.1, 5.0)
            self._under_way += 1
            asyncio.get_running_loop().call_later(seconds, self._arrive, raw, self._purges)

    def purge(self) -> None:
        """Forget everything, also what is on its way."""
        self._purges += 1
        self._ready.clear()

    async def take(self, process: Process) -> bytes:
        """The next message; it comes again when the process dies before ``done``."""
        if self._ready:
            raw = self._ready.popleft()
        else:
            waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._idle[waiting] = None
            try:
                raw = await waiting
            except asyncio.CancelledError:
                if self._idle.pop(waiting, 0) == 0 and not waiting.cancelled():
                    self._hand_out(waiting.result())
                raise
        self._unconfirmed.setdefault(process, []).append(raw)
        return raw

    def done(self, process: Process, raw: bytes) -> None:
        process.check()
        self._unconfirmed[process].remove(raw)

    def take_back(self, process: Process) -> None:
        """A process died: what it had not confirmed comes again."""
        for raw in self._unconfirmed.pop(process, ()):
            self.publish(raw, delay_seconds=1.0)

    def _arrive(self, raw: bytes, purges: int) -> None:
        self._under_way -= 1
        if purges == self._purges:
            self._hand_out(raw)

    def _hand_out(self, raw: bytes) -> None:
        if self._idle:
            waiting = next(iter(self._idle))
            del self._idle[waiting]
            waiting.set_result(raw)
        else:
            self._ready.append(raw)


class SimulatedBroker(Broker):
    """A scheduler's own view of the queues, with its actors."""

    def __init__(self, queues: Queues, process: Process) -> None:
        super().__init__([AgeLimit(max_age=3_600_000), TimeLimit(), BoundedRetries()])
        self._queues = queues
        self._process = process
        for queue in QUEUES:
            self.declare_queue(queue)

    def declare_queue(self, queue_name: str) -> None:
        self.queues[queue_name] = None

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        self._process.check()
        self._queues.publish(message.encode(), (delay or 0) / 1000)
        return message

    async def work(self) -> None:
        """One worker thread."""
        while True:
            raw = await self._queues.take(self._process)
            await run_synchronous(self._run, MessageProxy(Message.decode(raw)))
            self._queues.done(self._process, raw)

    def _run(self, message: MessageProxy) -> None:
        try:
            self.emit_before("process_message", message)
            self.get_actor(message.actor_name)(*message.args, **message.kwargs)
        except SkipMessage:
            return
        except (DarkbloomError, psycopg.OperationalError) as error:  # anything else is a mistake, here or there
            self.emit_after("process_message", message, exception=error)
        else:
            self.emit_after("process_message", message, result=None)
        if message.failed:
            self._queues.dead_letters.append(message.actor_name)


class SimulatedPublisher:
    """A gateway's way to the queues, in the place of the publisher's thread."""

    def __init__(self, queues: Queues, network: Network, process: Process) -> None:
        self._queues = queues
        self._network = network
        self._process = process

    async def send(self, message: dramatiq.Message[Any]) -> None:
        """Raises SchedulerUnavailable when the broker is out of reach, or its confirmation is lost."""
        try:
            await self._network.travel(self._process, BROKER)
            self._queues.publish(message.encode())
            await self._network.travel(self._process, BROKER)
        except ConnectionError as error:
            raise SchedulerUnavailable(SchedulerUnavailable.__doc__) from error

    def close(self) -> None:
        """Nothing to close."""
