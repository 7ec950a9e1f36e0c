"""Retries that store nothing of what went wrong.

Dramatiq's own middleware writes the traceback, with whatever values it shows, into the message. This one keeps a count.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.common import compute_backoff

log = logging.getLogger(__name__)


class BoundedRetries(Middleware):
    """Runs a failed message again after a growing delay, ``max_retries`` times at most, then dead-letters it.

    ``given_up`` counts the dead letters by actor.
    """

    def __init__(self, *, max_retries: int = 8, min_backoff_ms: int = 200, max_backoff_ms: int = 30_000) -> None:
        self.max_retries = max_retries
        self.min_backoff_ms = min_backoff_ms
        self.max_backoff_ms = max_backoff_ms
        self.given_up: Counter[str] = Counter()

    @property
    def actor_options(self) -> set[str]:
        return {"max_retries"}

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None:
            return
        retries = message.options.get("retries", 0)
        limit = broker.get_actor(message.actor_name).options.get("max_retries", self.max_retries)
        if retries >= limit:
            self._give_up(message, exception)
            return
        _, delay_ms = compute_backoff(retries, factor=self.min_backoff_ms, max_backoff=self.max_backoff_ms)
        log.warning("%s failed with %s, again in %d ms", message.actor_name, type(exception).__name__, delay_ms)
        message.options["retries"] = retries + 1
        try:
            broker.enqueue(message._message, delay=delay_ms)
        except Exception as problem:  # noqa: BLE001  # whatever keeps it from the queue, it must not be lost in silence
            self._give_up(message, problem)

    def _give_up(self, message: MessageProxy, why: BaseException) -> None:
        self.given_up[message.actor_name] += 1
        log.error("%s gave up: %s", message.actor_name, type(why).__name__)
        message.fail()
