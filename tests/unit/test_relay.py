from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from api.inbox import BUFFERED_BYTES_MAX, Inbox, MachineLost, Overflowed
from api.relay.jobs import RelayedJob, RelayedJobs, RelayedResponse
from api.relay.machine import RelayedMachine
from domain.errors import Conflict
from domain.protocol import (
    Cancel,
    InferenceAccepted,
    InferenceComplete,
    InferenceRequest,
    InferenceResponseChunk,
    Sealed,
    Usage,
)
from domain.relay import JobFrame
from domain.routing import Snapshot
from tests.support.examples import snapshot

ASKED = InferenceRequest(request_id="job", encrypted_body=Sealed("key", "sealed"))
ACCEPTED = InferenceAccepted(request_id="job")
COMPLETE = InferenceComplete(request_id="job", usage=Usage(1, 2))


def chunk(size: int = 10) -> InferenceResponseChunk:
    return InferenceResponseChunk(request_id="job", encrypted_data=Sealed("key", "x" * size))


# --- the gateway with the consumer -----------------------------------------------------------------------------------


class ScriptedAnswer:
    """Frames as they are put in; an exception is raised, None is the end."""

    def __init__(self) -> None:
        self.to_come: asyncio.Queue[JobFrame | Exception | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def __aenter__(self) -> ScriptedAnswer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed.set()

    async def frames(self) -> AsyncGenerator[JobFrame, None]:
        while (item := await self.to_come.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class ScriptedRelay:
    def __init__(self) -> None:
        self.answer = ScriptedAnswer()
        self.cancelled: list[str] = []

    def unreachable(self) -> dict[str, float]:
        return {}

    async def start(self, machine: Snapshot, request: InferenceRequest) -> ScriptedAnswer:
        return self.answer

    async def cancel(self, machine: Snapshot, job_id: str) -> None:
        self.cancelled.append(job_id)

    async def violated(self, machine: Snapshot, what: str) -> None:
        raise ConnectionError("gone")


async def running() -> tuple[RelayedMachine, ScriptedRelay, Inbox]:
    relay, inbox = ScriptedRelay(), Inbox()
    machine = RelayedMachine(snapshot(), relay)
    machine.open_job("job", inbox)
    await machine.send(ASKED)
    return machine, relay, inbox


async def test_frames_reach_the_inbox_in_order() -> None:
    _, relay, inbox = await running()
    sent: list[JobFrame] = [ACCEPTED, chunk(), COMPLETE]
    for frame in sent:
        relay.answer.to_come.put_nowait(frame)
    assert [await inbox.get(1.0) for _ in sent] == sent


@pytest.mark.parametrize("end", [None, ConnectionError("ReadError")], ids=["without a last word", "broken"])
async def test_a_stream_that_ends_early_means_that_the_machine_is_lost(end: Exception | None) -> None:
    _, relay, inbox = await running()
    relay.answer.to_come.put_nowait(ACCEPTED)
    relay.answer.to_come.put_nowait(end)
    assert [await inbox.get(1.0), await inbox.get(1.0)] == [ACCEPTED, MachineLost("job")]


async def test_a_stream_that_breaks_after_the_last_word_loses_nothing() -> None:
    _, relay, inbox = await running()
    relay.answer.to_come.put_nowait(COMPLETE)
    relay.answer.to_come.put_nowait(ConnectionError("ReadError"))
    await relay.answer.closed.wait()
    assert await inbox.get(1.0) == COMPLETE
    with pytest.raises(TimeoutError):
        await inbox.get(0.01)


async def test_closing_a_job_at_work_closes_its_stream() -> None:
    machine, relay, _ = await running()
    relay.answer.to_come.put_nowait(ACCEPTED)
    await asyncio.sleep(0)
    machine.close_job("job")
    async with asyncio.timeout(1):
        await relay.answer.closed.wait()


async def test_a_cancel_goes_to_the_machine_only_while_its_job_runs_there() -> None:
    machine, relay, inbox = await running()
    await machine.send(Cancel(request_id="job"))
    assert relay.cancelled == ["job"]
    relay.answer.to_come.put_nowait(COMPLETE)
    await inbox.get(1.0)
    with pytest.raises(ConnectionError):
        await machine.send(Cancel(request_id="job"))
    with pytest.raises(ConnectionError):
        await RelayedMachine(snapshot(), relay).send(Cancel(request_id="job"))


async def test_a_consumer_who_does_not_read_is_bounded_as_with_a_machine_of_its_own_gateway() -> None:
    _, relay, inbox = await running()
    for _ in range(3):
        relay.answer.to_come.put_nowait(chunk(BUFFERED_BYTES_MAX // 2))
    relay.answer.to_come.put_nowait(COMPLETE)
    relay.answer.to_come.put_nowait(None)
    await relay.answer.closed.wait()
    assert await inbox.get(1.0) == Overflowed("job")


async def test_a_violation_that_cannot_be_told_fails_nobody() -> None:
    await RelayedMachine(snapshot(), ScriptedRelay()).violated("a chunk was not sealed")


# --- the gateway with the machine ------------------------------------------------------------------------------------


class Link:
    """A machine that notes what it is sent."""

    def __init__(self, *, gone: bool = False) -> None:
        self.sent: list[InferenceRequest | Cancel] = []
        self.inboxes: dict[str, Inbox] = {}
        self.gone = gone

    def open_job(self, job_id: str, inbox: Inbox) -> None:
        self.inboxes[job_id] = inbox

    def close_job(self, job_id: str) -> None:
        self.inboxes.pop(job_id)

    async def send(self, message: InferenceRequest | Cancel) -> None:
        if self.gone:
            raise ConnectionError("gone")
        self.sent.append(message)

    async def violated(self, what: str) -> None:
        raise AssertionError(what)


class Connection:
    """The other gateway, as ASGI shows it. ``leave`` closes it; ``before_send`` may hold a write up or fail it."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = False
        self._left = asyncio.Event()
        self.before_send: Callable[[Message], Any] = lambda _: asyncio.sleep(0)

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.before_send(message)
        if message["type"] == "http.response.body":
            self.body += message["body"]
            self.ended = not message["more_body"]

    def frames(self) -> list[JobFrame]:
        return [msgspec.json.decode(line, type=JobFrame) for line in self.body.splitlines() if line]


async def started(link: Link) -> tuple[RelayedJobs, RelayedJob]:
    jobs = RelayedJobs()
    return jobs, await jobs.start("session", link, ASKED)


async def serve(jobs: RelayedJobs, job: RelayedJob, connection: Connection) -> None:
    async with asyncio.timeout(5):
        await RelayedResponse(job, jobs)({"type": "http"}, connection.receive, connection.send)


async def test_a_job_streams_the_machines_frames_up_to_its_last_word() -> None:
    link, connection = Link(), Connection()
    jobs, job = await started(link)
    for frame in (ACCEPTED, chunk(), COMPLETE):
        job.inbox.put(frame)

    await serve(jobs, job, connection)

    assert connection.frames() == [ACCEPTED, chunk(), COMPLETE]
    assert connection.ended
    assert (link.sent, link.inboxes, len(jobs)) == ([ASKED], {}, 0)


async def test_a_lost_machine_ends_the_stream_without_a_last_word() -> None:
    link, connection = Link(), Connection()
    jobs, job = await started(link)
    for item in (ACCEPTED, MachineLost("job")):
        job.inbox.put(item)

    await serve(jobs, job, connection)

    assert connection.frames() == [ACCEPTED]
    assert connection.ended
    assert link.sent == [ASKED]


async def test_a_gateway_that_goes_away_stops_the_machine() -> None:
    link, connection = Link(), Connection()
    jobs, job = await started(link)
    connection.leave()

    await serve(jobs, job, connection)

    assert link.sent == [ASKED, Cancel(request_id="job")]
    assert len(jobs) == 0


async def test_a_connection_that_cannot_be_written_to_stops_the_machine() -> None:
    link, connection = Link(), Connection()
    jobs, job = await started(link)

    async def broken(_: Message) -> None:
        raise OSError

    connection.before_send = broken
    await serve(jobs, job, connection)

    assert link.sent == [ASKED, Cancel(request_id="job")]


async def test_a_gateway_that_fetches_too_slowly_loses_its_job_and_no_other() -> None:
    link, connection = Link(), Connection()
    jobs, job = await started(link)
    for _ in range(3):
        job.inbox.put(chunk(BUFFERED_BYTES_MAX // 2))

    await serve(jobs, job, connection)

    assert connection.ended
    assert connection.frames() == []
    assert link.sent == [ASKED, Cancel(request_id="job")]


async def test_aborted_jobs_end_and_their_machines_stop() -> None:
    link, connection = Link(), Connection()
    jobs, job = await started(link)
    job.inbox.put(ACCEPTED)
    jobs.abort_all()

    await serve(jobs, job, connection)

    assert connection.ended
    assert link.sent == [ASKED, Cancel(request_id="job")]


async def test_a_job_whose_machine_is_gone_leaves_nothing_behind() -> None:
    link, jobs = Link(gone=True), RelayedJobs()
    with pytest.raises(ConnectionError):
        await jobs.start("session", link, ASKED)
    assert (len(jobs), link.inboxes) == (0, {})


async def test_a_job_runs_once_and_is_found_only_on_its_own_machine() -> None:
    jobs, job = await started(Link())
    with pytest.raises(Conflict):
        await jobs.start("session", Link(), ASKED)
    assert jobs.find("session", "job") is job
    assert jobs.find("another session", "job") is None
