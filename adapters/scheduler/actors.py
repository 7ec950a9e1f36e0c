"""The actors: the names and options under which the scheduler's work travels through the broker."""

from __future__ import annotations

from typing import Any

import dramatiq
import msgspec
from dramatiq import Broker, Message

from adapters.scheduler.brokers import DISPATCH_QUEUE, SETTLE_QUEUE, SLOW_QUEUE
from adapters.scheduler.scheduler import Scheduler
from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob

_ROUTES: dict[type[Job], tuple[str, str]] = {
    DispatchJob: (DISPATCH_QUEUE, "dispatch_job"),
    SettleJob: (SETTLE_QUEUE, "settle_job"),
    ReleaseJob: (SETTLE_QUEUE, "release_job"),
}


def message_of(job: Job) -> Message[Any]:
    """The message that carries a job. A gateway sends it without having the actors."""
    queue, actor = _ROUTES[type(job)]
    return Message(queue_name=queue, actor_name=actor, args=(msgspec.to_builtins(job),), kwargs={}, options={})


def sweep_message() -> Message[Any]:
    return Message(queue_name=SLOW_QUEUE, actor_name="sweep_requests", args=(), kwargs={}, options={"max_age": 60_000})


def register(broker: Broker, scheduler: Scheduler) -> None:
    """Declare the actors on a broker, bound to the scheduler that does their work."""

    def dispatch_job(job: dict[str, Any]) -> None:
        scheduler.dispatch(msgspec.convert(job, DispatchJob))

    def settle_job(job: dict[str, Any]) -> None:
        scheduler.settle(msgspec.convert(job, SettleJob))

    def release_job(job: dict[str, Any]) -> None:
        scheduler.release(msgspec.convert(job, ReleaseJob))

    def sweep_requests() -> None:
        scheduler.sweep()

    dramatiq.actor(broker=broker, queue_name=DISPATCH_QUEUE, max_retries=3, time_limit=30_000)(dispatch_job)
    # An end that cannot be written keeps being tried for as long as its hold lasts.
    for end in (settle_job, release_job):
        dramatiq.actor(broker=broker, queue_name=SETTLE_QUEUE, max_retries=130, time_limit=90_000)(end)
    dramatiq.actor(broker=broker, queue_name=SLOW_QUEUE, max_retries=0, time_limit=300_000)(sweep_requests)
