"""A scheduler process's moving parts: Dramatiq's worker threads, and the clock that sends the sweeper on its way."""

from __future__ import annotations

import logging
import threading

from dramatiq import Broker, Worker

from adapters.scheduler.actors import sweep_message
from adapters.scheduler.brokers import SETTLE_QUEUE
from adapters.scheduler.embedded import EmbeddedBroker, QueueIsFull

log = logging.getLogger(__name__)

IDLE_WAKE_MS = 250
"""How often idle worker threads look whether they should stop."""

STOP_MS_MAX = 10_000
DRAIN_SECONDS_MAX = 10.0
"""How long a stopping worker goes on recording the ends of requests that only this process knows of."""


class SchedulerWorker:
    def __init__(self, broker: Broker, *, threads: int, sweep_seconds: float) -> None:
        self._broker = broker
        self._worker = Worker(broker, worker_threads=threads, worker_timeout=IDLE_WAKE_MS)
        self._sweep_seconds = sweep_seconds
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="scheduler-ticker", daemon=True)

    def start(self) -> None:
        # Without this signal Dramatiq's time limits do nothing in a worker that its own command did not start.
        self._broker.emit_after("process_boot")
        self._worker.start()
        self._ticker.start()

    def stop(self) -> None:
        """Record the ends that are queued in this process, let what runs finish, then end."""
        self._stopping.set()
        self._ticker.join()
        if isinstance(self._broker, EmbeddedBroker):
            left = self._broker.drain(SETTLE_QUEUE, seconds=DRAIN_SECONDS_MAX)
            if left:
                log.error("%d requests have no recorded end; they are released when Darkbloom runs again", left)
        self._worker.stop(timeout=STOP_MS_MAX)
        self._broker.close()

    def _tick(self) -> None:
        while True:
            try:
                self._broker.enqueue(sweep_message())
            except QueueIsFull:
                log.warning("the scheduler's slow queue is full; the sweep waits for the next tick")
            except Exception as error:  # noqa: BLE001  # pika raises many kinds; the next tick tries again with a new connection
                log.warning("the sweep could not be queued: %s", type(error).__name__)
            if self._stopping.wait(self._sweep_seconds):
                return
