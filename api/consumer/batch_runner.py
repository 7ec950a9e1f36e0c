"""Looks for batches that no living gateway works on, and runs a few of them at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from uuid import UUID

from api.consumer.batch_run import BatchRun, Turns
from api.coordinator import Coordinator
from api.ports import BatchWork
from domain.batches import BatchLost
from domain.errors import DarkbloomError

log = logging.getLogger(__name__)

BATCHES_AT_ONCE = 8
LOOK_SECONDS = 1.0
FORGET_SECONDS = 60.0


class BatchRunner:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._turns = Turns()
        self._forgot_at = -FORGET_SECONDS

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except DarkbloomError as error:
                    log.warning("batches are looked for later: %s", type(error).__name__)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()

    async def _look(self) -> None:
        coordinator, room = self._coordinator, BATCHES_AT_ONCE - len(self._tasks)
        if coordinator.draining or coordinator.suspended or not room:
            return
        if time.monotonic() - self._forgot_at >= FORGET_SECONDS:
            self._forgot_at = time.monotonic()
            await coordinator.batches.forget_old()
        for work in await coordinator.batches.take(coordinator.gateway_id, list(self._tasks), room):
            self._tasks[work.batch_id] = asyncio.create_task(self._work(work))

    async def _work(self, work: BatchWork) -> None:
        try:
            await BatchRun(self._coordinator, work, self._turns).run()
        except BatchLost:
            log.info("batch %s is in other hands", work.batch_id)
        except DarkbloomError as error:
            log.warning("batch %s goes on later: %s", work.batch_id, type(error).__name__)
        finally:
            self._tasks.pop(work.batch_id, None)
