"""Jobs that run on this gateway's machines for consumers of other gateways. Only sealed frames pass through here."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.consumer.attempt import CANCEL_WRITE_SECONDS, MachineLink
from api.inbox import Aborted, ConsumerGone, Inbox, MachineLost, Overflowed
from domain import protocol
from domain.errors import Conflict
from domain.protocol import Cancel, InferenceRequest
from domain.relay import KEEP_ALIVE_SECONDS, LAST_WORDS, SILENCE_SECONDS_MAX, JobFrame

log = logging.getLogger(__name__)


class RelayedJob(NamedTuple):
    job_id: str
    session_id: str
    link: MachineLink
    inbox: Inbox

    async def cancel(self) -> None:
        """Raises ConnectionError when the machine is gone."""
        try:
            async with asyncio.timeout(CANCEL_WRITE_SECONDS):
                await self.link.send(Cancel(request_id=self.job_id))
        except TimeoutError:
            raise ConnectionError("the machine does not read") from None


class RelayedJobs:
    def __init__(self) -> None:
        self._jobs: dict[str, RelayedJob] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    async def start(self, session_id: str, link: MachineLink, request: InferenceRequest) -> RelayedJob:
        """Hand a machine the request.

        Raises:
            ConnectionError: the machine is gone.
            Conflict: the job runs already.
        """
        job = RelayedJob(request.request_id, session_id, link, Inbox())
        if job.job_id in self._jobs:
            raise Conflict("The job runs already.")
        self._jobs[job.job_id] = job
        link.open_job(job.job_id, job.inbox)
        try:
            await link.send(request)
        except BaseException:
            self.close(job)
            raise
        return job

    def find(self, session_id: str, job_id: str) -> RelayedJob | None:
        job = self._jobs.get(job_id)
        return job if job is not None and job.session_id == session_id else None

    def close(self, job: RelayedJob) -> None:
        self._jobs.pop(job.job_id, None)
        job.link.close_job(job.job_id)

    def abort_all(self) -> None:
        """Stop them all; to the gateways that wait for them their machines are lost."""
        for job in list(self._jobs.values()):
            job.inbox.interrupt(Aborted())


class RelayedResponse(Response):
    """The stream of a job's frames. Whatever ends it before the machine's last word makes the machine stop."""

    def __init__(self, job: RelayedJob, jobs: RelayedJobs) -> None:
        super().__init__()
        self._job = job
        self._jobs = jobs
        self._at_work = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            headers = [(b"content-type", b"application/x-ndjson")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._relay(send)
        except (OSError, TimeoutError):
            log.info("job %s: the gateway that waited for it is gone", self._job.job_id)
        finally:
            watch.cancel()
            self._jobs.close(self._job)
            if self._at_work:
                await self._stop()

    async def _relay(self, send: Send) -> None:
        while True:
            frame = await self._next_frame()
            if frame is None:
                await _write(send, b"", last=True)
                return
            self._at_work = not isinstance(frame, LAST_WORDS)
            text = protocol.encode(frame).encode() if not isinstance(frame, _KeepAlive) else b""
            await _write(send, text + b"\n", last=not self._at_work)
            if not self._at_work:
                return

    async def _next_frame(self) -> JobFrame | _KeepAlive | None:
        """None: there will be no more."""
        try:
            item = await self._job.inbox.get(KEEP_ALIVE_SECONDS)
        except TimeoutError:
            return _KeepAlive()
        if isinstance(item, Overflowed):
            log.warning("job %s is stopped: its answer is not fetched", self._job.job_id)
        if isinstance(item, MachineLost):
            self._at_work = False
        return item if isinstance(item, JobFrame) else None

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._job.inbox.interrupt(ConsumerGone())

    async def _stop(self) -> None:
        try:
            await self._job.cancel()
        except ConnectionError:
            log.info("job %s could not be cancelled: its machine is gone", self._job.job_id)


class _KeepAlive(NamedTuple):
    """Nothing happened for a while."""


async def _write(send: Send, body: bytes, *, last: bool) -> None:
    async with asyncio.timeout(SILENCE_SECONDS_MAX):
        await send({"type": "http.response.body", "body": body, "more_body": not last})
