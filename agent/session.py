"""One connection to the coordinator, from its registration to its end (provider protocol, sections 1 to 4 and 8)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from agent.errors import AgentStopping, JobError, JobRefused
from agent.jobs import Job
from agent.log import describe, printable
from agent.machine import Machine
from agent.outbox import Outbox
from agent.shutdown import Shutdown
from domain import protocol

_log = logging.getLogger(__name__)

_REMEMBERED_IDS_MAX = 100_000
_FLUSH_SECONDS_MAX = 5.0
_LOGGED_TYPES_MAX = 32
_REASONS_MAX = 100


class _FrameType(msgspec.Struct):
    type: str = ""


class Session:
    """Registers, beats, answers challenges and runs jobs until the socket closes or the agent drains.

    A session's jobs end with it: nothing about them is sent on the next connection.
    """

    def __init__(self, machine: Machine, shutdown: Shutdown, coordinator: str, *, once: bool = False) -> None:
        """``coordinator`` is its address for the log; with ``once`` the first completed request drains the agent."""
        self._machine = machine
        self._shutdown = shutdown
        self._coordinator = coordinator
        self._once = once
        self._outbox = Outbox()
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._no_jobs = asyncio.Event()
        self._no_jobs.set()
        self._seen_ids: set[str] = set()
        self._seen_order: deque[str] = deque()
        self._logged_types: set[str] = set()
        self._trust: protocol.TrustStatus | None = None

    async def run(self, socket: ClientConnection) -> None:
        """Serve until the connection ends or a drain is complete. The caller closes the socket."""
        self._outbox.control(await asyncio.to_thread(self._machine.register))
        self._log_connected("not reported yet")
        duties = [
            asyncio.create_task(self._outbox.pump(socket.send)),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._read(socket)),
            asyncio.create_task(self._drain()),
        ]
        try:
            done, _ = await asyncio.wait(duties, return_when=asyncio.FIRST_COMPLETED)
            for duty in done:
                _log_failure(duty)
        finally:
            await _cancel_all([*duties, *self._tasks])

    async def _read(self, socket: ClientConnection) -> None:
        async for frame in socket:
            if isinstance(frame, bytes):
                continue
            try:
                message = protocol.decode_from_coordinator(frame)
            except protocol.MalformedMessage as error:
                self._log_unreadable(frame, error)
                continue
            self._handle(message)

    def _handle(self, message: protocol.FromCoordinator) -> None:
        if isinstance(message, protocol.InferenceRequest):
            self._accept(message)
        elif isinstance(message, protocol.Cancel):
            if (job := self._jobs.get(message.request_id)) is not None:
                job.cancel()
        elif isinstance(message, protocol.AttestationChallenge):
            self._start(self._answer(message))
        elif isinstance(message, protocol.TrustStatus):
            self._note_trust(message)
        elif not message.verified:
            components = ", ".join(printable(mismatch.component) for mismatch in message.mismatches)
            _log.warning("the coordinator does not know this runtime: %s", components or "no details given")

    def _accept(self, request: protocol.InferenceRequest) -> None:
        refusal: JobError | None = None
        if not self._remember(request.request_id):
            refusal = JobRefused("this request id was used before on this connection")
        elif self._shutdown.drain.is_set():
            refusal = AgentStopping()
        if refusal is not None:
            self._outbox.control(protocol.InferenceError(request.request_id, str(refusal), refusal.status_code))
            return
        job = Job(request, self._machine, self._outbox)
        self._jobs[job.id] = job
        self._no_jobs.clear()
        self._start(self._run(job))

    async def _run(self, job: Job) -> None:
        try:
            completed = await job.run()
        finally:
            self._jobs.pop(job.id, None)
            if not self._jobs:
                self._no_jobs.set()
        if completed and self._once:
            self._shutdown.drain.set()

    async def _answer(self, challenge: protocol.AttestationChallenge) -> None:
        self._outbox.control(await asyncio.to_thread(self._machine.answer, challenge))

    async def _beat(self) -> None:
        while True:
            await self._beat_once()
            await asyncio.sleep(protocol.HEARTBEAT_INTERVAL_SECONDS)

    async def _beat_once(self) -> None:
        status = "draining" if self._shutdown.drain.is_set() else "serving" if self._jobs else "idle"
        self._outbox.control(await asyncio.to_thread(self._machine.heartbeat, status))

    async def _drain(self) -> None:
        await self._shutdown.drain.wait()
        await self._beat_once()
        finished = asyncio.create_task(self._no_jobs.wait())
        aborted = asyncio.create_task(self._shutdown.abort.wait())
        try:
            done, _ = await asyncio.wait(
                (finished, aborted),
                timeout=self._shutdown.drain_timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            finished.cancel()
            aborted.cancel()
        if not done:
            self._shutdown.deadline_passed()
        self._abort_jobs()
        try:
            await asyncio.wait_for(self._outbox.flushed(), _FLUSH_SECONDS_MAX)
        except TimeoutError:
            _log.warning("the line is too slow for the last messages")

    def _abort_jobs(self) -> None:
        stopping = AgentStopping()
        for job_id in self._jobs:
            self._outbox.control(protocol.InferenceError(job_id, str(stopping), stopping.status_code))
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)

    def _remember(self, request_id: str) -> bool:
        if request_id in self._seen_ids:
            return False
        if len(self._seen_order) >= _REMEMBERED_IDS_MAX:
            self._seen_ids.discard(self._seen_order.popleft())
        self._seen_ids.add(request_id)
        self._seen_order.append(request_id)
        return True

    def _note_trust(self, trust: protocol.TrustStatus) -> None:
        if trust == self._trust:
            return
        self._trust = trust
        reasons = [reason for reason in trust.reason.split(protocol.REASON_SEPARATOR) if reason]
        remark = ", but something is in the way" if reasons else ""
        self._log_connected(f"{printable(trust.trust_level)}, status {printable(trust.status)}{remark}")
        for reason in reasons[:_REASONS_MAX]:
            _log.info("- %s", printable(reason, 400))

    def _log_connected(self, trust: str) -> None:
        _log.info("connected to %s; trust %s; serving %s", self._coordinator, trust, ", ".join(self._machine.slots))

    def _log_unreadable(self, frame: str, error: protocol.MalformedMessage) -> None:
        try:
            kind = msgspec.json.decode(frame, type=_FrameType).type
        except msgspec.DecodeError:
            kind = ""
        if kind not in self._logged_types and len(self._logged_types) < _LOGGED_TYPES_MAX:
            self._logged_types.add(kind)
            _log.warning("ignored a message of type %s: %s", printable(kind) or "unknown", error)


def _log_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ConnectionClosed):
        _log.error("the session failed: %s", describe(error))


async def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
