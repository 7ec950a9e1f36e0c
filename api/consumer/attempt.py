"""One attempt on one machine: seal and send the request, relay what comes back, open every chunk.

It knows nothing of money. Source: provider protocol, sections 4, 5 and 8.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from api.consumer.answers import Made, ProviderChunk, ProviderDelta, ReadText, Whole
from api.consumer.expected import Delivered, Expected
from api.inbox import Inbox, JobEvent, MachineLost
from api.ports import Channel, Sealing
from domain.dispatch import Assigned, Refused, Waiting
from domain.protocol import (
    STREAM_END,
    Cancel,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    Sealed,
)
from domain.routing import Snapshot

log = logging.getLogger(__name__)

CANCEL_WRITE_SECONDS = 2.0


class MachineLink(Protocol):
    """A connected machine, as the gateway that holds its socket offers it."""

    def open_job(self, job_id: str, inbox: Inbox) -> None: ...

    def close_job(self, job_id: str) -> None: ...

    async def send(self, message: InferenceRequest | Cancel) -> None:
        """Raises ConnectionError when the socket is gone."""
        ...

    async def violated(self, what: str) -> None:
        """The machine broke the protocol: it is untrusted from now on."""
        ...


class Started(NamedTuple):
    """The first content is here: the status may go out, and this machine is the one."""

    machine: Snapshot
    job_id: str
    timing_us: dict[str, int]


class Delta(NamedTuple):
    chunk: ProviderChunk


Answer = Started | Delta | Whole | Made


class AttemptFailed(Exception):
    """This attempt will not answer; with ``retry``, another machine may. ``reason`` is of a closed vocabulary."""

    def __init__(self, reason: str, status: int, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry = retry


Next = Callable[[float, bool], Awaitable[Any]]
"""The next item of the request's inbox within a number of seconds; the flag says whether the answer has begun."""

ReadyOutput = Callable[[str], InferenceResponseChunk | None]
"""The next item of the inbox, if it is here already and output of this job."""

CHUNKS_AT_ONCE_MAX = 64

RETRIED_CLIENT_ERRORS = frozenset({404, 408, 429})
"""Statuses below 500 that may be the machine's fault; the others follow from the request and are not tried again."""


class Attempt:
    """``delivered`` is what was passed on; ``started`` says whether any of it was."""

    def __init__(
        self,
        assigned: Assigned,
        link: MachineLink,
        *,
        sealing: Sealing,
        next_item: Next,
        ready_output: ReadyOutput,
        read_text: ReadText,
        expected: Expected,
        first_signal_seconds: float,
        first_content_seconds: float,
        chunk_gap_seconds: float,
        timing_us: dict[str, int],
    ) -> None:
        self.assigned = assigned
        self.delivered = Delivered(expected)
        self.started = False
        self._link = link
        self._sealing = sealing
        self._next = next_item
        self._ready_output = ready_output
        self._read_text = read_text
        self._patience = first_signal_seconds
        self._first_content_seconds = first_content_seconds
        self._chunk_gap_seconds = chunk_gap_seconds
        self._timing_us = timing_us
        self._sent_at = 0.0

    async def run(self, body: bytes) -> AsyncGenerator[Answer | InferenceComplete, None]:
        """The machine's answer; an InferenceComplete comes last.

        Raises:
            AttemptFailed: the machine failed, in words of ours.
            TimeoutError: it said nothing for too long.
        """
        channel = await self._send(body)
        while True:
            event = await self._next_event()
            match event:
                case InferenceAccepted():
                    self._timing_us["dispatch_us"] = _since_us(self._sent_at)
                    if not self.started:
                        self._patience = self._first_content_seconds
                case InferenceResponseChunk():
                    async with aclosing(self._take_ready(event, channel)) as items:
                        async for item in items:
                            yield item
                case InferenceComplete():
                    if not self.started:  # even an empty answer has a finish; without one nothing was delivered
                        raise AttemptFailed("no_answer", 502)
                    yield event
                    return
                case InferenceError():
                    raise _machine_error(event)
                case MachineLost():
                    raise AttemptFailed("machine_lost", 502)

    async def cancel(self) -> None:
        try:
            async with asyncio.timeout(CANCEL_WRITE_SECONDS):
                await self._link.send(Cancel(request_id=self.assigned.job_id))
        except (ConnectionError, TimeoutError):
            log.info("job %s could not be cancelled: its machine is gone", self.assigned.job_id)

    async def _send(self, body: bytes) -> Channel:
        began = time.perf_counter()
        try:
            channel = self._sealing.channel(self.assigned.machine.provider_key)
            sealed = Sealed(channel.public_key, channel.seal(body))
            self._timing_us["encrypt_us"] = _since_us(began)
            self._sent_at = time.perf_counter()
            async with asyncio.timeout(self._patience):
                await self._link.send(InferenceRequest(request_id=self.assigned.job_id, encrypted_body=sealed))
        except (ValueError, ConnectionError, TimeoutError):
            raise AttemptFailed("send_failed", 502) from None
        return channel

    async def _next_event(self) -> JobEvent:
        while True:
            item = await self._next(self._patience, self.started)
            if isinstance(item, Assigned | Waiting | Refused) or item.request_id != self.assigned.job_id:
                continue  # late news of an earlier attempt
            event: JobEvent = item
            return event

    async def _take_ready(self, chunk: InferenceResponseChunk, channel: Channel) -> AsyncGenerator[Answer, None]:
        """What one chunk means for the consumer, with all that are here already behind it: they can go out in one
        write, which is dear, and none of them waits for another."""
        choices: list[ProviderDelta] = []
        more: InferenceResponseChunk | None = chunk
        taken = 0
        try:
            while more is not None:
                for item in await self._take(more, channel):
                    if isinstance(item, Delta):
                        choices += item.chunk.choices
                    else:
                        yield item
                taken += 1
                more = self._ready_output(self.assigned.job_id) if taken < CHUNKS_AT_ONCE_MAX else None
        except AttemptFailed:
            if choices:
                yield Delta(ProviderChunk(tuple(choices)))
            raise
        if choices:
            yield Delta(ProviderChunk(tuple(choices)))

    async def _take(self, chunk: InferenceResponseChunk, channel: Channel) -> list[Answer]:
        """What one chunk means for the consumer. A bare role does not commit the answer."""
        text = await self._open(chunk, channel)
        if text == STREAM_END:
            return []
        try:
            answer = self._read_text(text)
            if answer is not None:
                self.delivered.add(answer)
        except ValueError:
            raise await self._violation("a chunk was not an answer in the promised form", "bad_answer") from None
        self._patience = self._chunk_gap_seconds
        if answer is None:
            return []
        if isinstance(answer, ProviderChunk):
            if not self.started and not answer.has_content:
                return []  # a bare role, which every dialect says by itself
            return [*self._start(), Delta(answer)]
        if self.started:
            raise await self._violation("a whole answer came twice", "bad_answer")
        return [*self._start(), answer]

    def _start(self) -> list[Answer]:
        if self.started:
            return []
        self.started = True
        self._timing_us["provider_us"] = _since_us(self._sent_at)
        return [Started(self.assigned.machine, self.assigned.job_id, self._timing_us)]

    async def _open(self, chunk: InferenceResponseChunk, channel: Channel) -> bytes:
        """Open a chunk; anything but a box from the registered key is a violation."""
        sealed = chunk.encrypted_data
        try:
            if chunk.data or sealed is None or sealed.ephemeral_public_key != self.assigned.machine.provider_key:
                raise ValueError
            return channel.open(sealed.ciphertext)
        except ValueError:
            raise await self._violation("a chunk was not sealed as the protocol demands", "bad_encryption") from None

    async def _violation(self, what: str, reason: str) -> AttemptFailed:
        await self._link.violated(what)
        return AttemptFailed(reason, 502)


def _machine_error(error: InferenceError) -> AttemptFailed:
    status = error.status_code if 400 <= error.status_code <= 599 else 502
    return AttemptFailed("machine_error", status, retry=status >= 500 or status in RETRIED_CLIENT_ERRORS)


def _since_us(began: float) -> int:
    return int((time.perf_counter() - began) * 1_000_000)
