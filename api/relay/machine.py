"""A machine whose socket another gateway holds, as a request here uses it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from api.inbox import Inbox, MachineLost
from api.ports import Relay, RelayedAnswer
from domain.protocol import Cancel, InferenceRequest
from domain.relay import LAST_WORDS
from domain.routing import Snapshot

log = logging.getLogger(__name__)


class RelayedMachine:
    """The link of one attempt. Its inbox is filled as if the machine were connected here; the bound of the inbox is
    what a consumer may lag behind, and no other stream waits for it."""

    def __init__(self, machine: Snapshot, relay: Relay) -> None:
        self._machine = machine
        self._relay = relay
        self._inbox: Inbox | None = None
        self._reading: asyncio.Task[None] | None = None
        self._over = False

    def open_job(self, job_id: str, inbox: Inbox) -> None:
        self._inbox = inbox

    def close_job(self, job_id: str) -> None:
        self._inbox = None
        if self._reading is not None and not self._over:
            self._reading.cancel()  # which closes the stream, and so the machine is told to stop

    async def send(self, message: InferenceRequest | Cancel) -> None:
        """Raises ConnectionError when the machine or its gateway is gone."""
        match message:
            case InferenceRequest():
                answer = await self._relay.start(self._machine, message)
                self._reading = asyncio.create_task(self._read(message.request_id, answer))
            case Cancel() if self._reading is None or self._over:
                raise ConnectionError("the job does not run there")
            case Cancel():
                await self._relay.cancel(self._machine, message.request_id)

    async def violated(self, what: str) -> None:
        try:
            await self._relay.violated(self._machine, what)
        except ConnectionError as error:
            log.warning("machine %s: %s, but its gateway was not told: %s", self._machine.machine_id[:12], what, error)

    async def _read(self, job_id: str, answer: RelayedAnswer) -> None:
        async with answer, aclosing(answer.frames()) as frames:
            try:
                async for frame in frames:
                    # Read on after the last word, to the end of the stream: the connection can be used again then.
                    self._over = self._over or isinstance(frame, LAST_WORDS)
                    if self._inbox is not None and frame.request_id == job_id:
                        self._inbox.put(frame)
            except ConnectionError as error:
                log.warning("job %s lost its machine's gateway: %s", job_id, error)
        if not self._over:
            self._over = True
            if self._inbox is not None:
                self._inbox.put(MachineLost(job_id))
