"""The one end of a request, and what its attempts leave behind: recorded at once, or as soon as that is possible."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from api.ports import Fleet, Jobs
from domain.dispatch import ReleaseJob, SettleJob
from domain.errors import DarkbloomError
from domain.requests import RequestReleased, RequestSettled

log = logging.getLogger(__name__)


class Ending:
    """``ended`` is true from the moment at which an end was chosen. ``end_later`` keeps trying an end that could not be
    written."""

    def __init__(
        self,
        request_id: UUID,
        *,
        jobs: Jobs,
        fleet: Fleet,
        end_later: Callable[[SettleJob | ReleaseJob], None],
        wait_seconds: float,
    ) -> None:
        self.ended = False
        self._request_id = request_id
        self._jobs = jobs
        self._fleet = fleet
        self._end_later = end_later
        self._wait_seconds = wait_seconds

    async def end(self, job: SettleJob | ReleaseJob) -> RequestSettled | RequestReleased | None:
        """Record the end at once; when that does not work in time, it is retried without anybody waiting for it."""
        assert not self.ended
        self.ended = True
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await self._jobs.end_now(job)
        except (DarkbloomError, TimeoutError) as error:
            log.warning("the end of request %s is recorded later: %s", self._request_id, type(error).__name__)
            self._end_later(job)
            return None

    async def leave_queue(self) -> None:
        try:
            await self._fleet.leave_queue(self._request_id)
        except DarkbloomError as error:
            log.warning("a place in the queue is given up later: %s", type(error).__name__)

    async def give_slot_back(self, number: int) -> None:
        """The slot of an attempt; giving it back twice does nothing."""
        try:
            for job in await self._fleet.release(self._request_id, number):
                await self._jobs.send(job)
        except DarkbloomError as error:
            log.warning("a slot is given back later: %s", type(error).__name__)
