"""A gateway's way to the scheduler: queue an intent, or run an end at once."""

from __future__ import annotations

from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.actors import message_of
from adapters.scheduler.brokers import Publisher, SchedulerUnavailable
from adapters.scheduler.scheduler import release_of, settlement_of
from domain.dispatch import Job, ReleaseJob, SettleJob
from domain.errors import ServiceUnavailable
from domain.requests import RequestReleased, RequestSettled


class SchedulerJobs:
    def __init__(self, publisher: Publisher, writer: LedgerWriter, *, fee_percent: int) -> None:
        self._publisher = publisher
        self._writer = writer
        self._fee_percent = fee_percent

    async def send(self, job: Job) -> None:
        try:
            await self._publisher.send(message_of(job))
        except SchedulerUnavailable as error:
            raise ServiceUnavailable("The scheduler takes no requests just now; try again.") from error

    async def end_now(self, job: SettleJob | ReleaseJob) -> RequestSettled | RequestReleased:
        command = settlement_of(job, self._fee_percent) if isinstance(job, SettleJob) else release_of(job)
        return await self._writer.run(command)
