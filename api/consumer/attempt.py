"""One attempt on one machine: seal and send the request, relay what comes back, open every chunk.

It knows nothing of money. Source: provider protocol, sections 4, 5 and 8.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from api.consumer.answers import Made, ProviderChunk, ReadText, Whole
from api.consumer.expected import Delivered, Expected
from api.inbox import Inbox, JobEvent, MachineLost, Overflowed, SendFailed
from api.ports import Channel, Sealing
from domain.dispatch import Assigned
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


class Patience(NamedTuple):
    """Seconds that a machine may say nothing: until its first word about a job, from then until the first content, and
    between chunks."""

    first_signal: float
    first_content: float
    chunk_gap: float


RETRIED_CLIENT_ERRORS = frozenset({404, 408, 429})
"""Statuses below 500 that may be the machine's fault; the others follow from the request and are not tried again."""

UNREAD = "unread"
"""The reason of an attempt that failed because its answer was not read as fast as it came."""


class Attempt:
    """``delivered`` is what was passed on; ``started`` says whether any of it was, ``heard`` whether the machine said a
    word. ``began_at``, and ``due_at`` when its next word is overdue, are times of the event loop."""

    def __init__(
        self,
        assigned: Assigned,
        link: MachineLink,
        *,
        sealing: Sealing,
        read_text: ReadText,
        expected: Expected,
        patience: Patience,
        timing_us: dict[str, int],
    ) -> None:
        """``timing_us`` is this attempt's own. Raises ValueError when the machine's key is unusable."""
        self.assigned = assigned
        self.delivered = Delivered(expected)
        self.started = False
        self.heard = False
        self.timing_us = timing_us
        self._link = link
        self._channel: Channel = sealing.channel(assigned.machine.provider_key)
        self._read_text = read_text
        self._allowed = patience
        self._patience = patience.first_signal
        self._sent_at = 0.0
        self.began_at = asyncio.get_running_loop().time()
        self._sending: asyncio.Task[None] | None = None
        self._heard_now()

    @property
    def seconds_at_work(self) -> float:
        return asyncio.get_running_loop().time() - self.began_at

    def begin(self, body: bytes, inbox: Inbox) -> None:
        """Seal the request and have it sent; whatever comes of it arrives in the inbox. Raises ValueError when it
        cannot be sealed."""
        began = time.perf_counter()
        sealed = Sealed(self._channel.public_key, self._channel.seal(body))
        self.timing_us["encrypt_us"] = _since_us(began)
        self._link.open_job(self.assigned.job_id, inbox)
        self._sent_at = time.perf_counter()
        self._sending = asyncio.create_task(self._send(sealed, inbox))

    async def take(self, event: JobEvent) -> Sequence[Answer | InferenceComplete]:
        """What an event means for the consumer; an InferenceComplete comes last.

        Raises:
            AttemptFailed: the machine failed, in words of ours.
        """
        self.heard = not isinstance(event, SendFailed)
        items: Sequence[Answer] = ()
        match event:
            case InferenceAccepted():
                self.timing_us["dispatch_us"] = _since_us(self._sent_at)
                if not self.started:
                    self._patience = self._allowed.first_content
            case InferenceResponseChunk():
                items = await self._take(event)
            case InferenceComplete():
                if not self.started:  # even an empty answer has a finish; without one nothing was delivered
                    raise AttemptFailed("no_answer", 502)
                return [event]
            case InferenceError():
                raise _machine_error(event)
            case MachineLost():
                raise AttemptFailed("machine_lost", 502)
            case SendFailed():
                raise AttemptFailed("send_failed", 502)
            case Overflowed():
                raise AttemptFailed(UNREAD if self.started else "bad_answer", 502)
        self._heard_now()
        return items

    async def leave(self, *, at_work: bool) -> None:
        """Let the machine go; one that is still at work is told to stop."""
        if self._sending is not None:
            self._sending.cancel()
        if at_work:
            await self.cancel()
        self._link.close_job(self.assigned.job_id)

    async def cancel(self) -> None:
        try:
            async with asyncio.timeout(CANCEL_WRITE_SECONDS):
                await self._link.send(Cancel(request_id=self.assigned.job_id))
        except (ConnectionError, TimeoutError):
            log.info("job %s could not be cancelled: its machine is gone", self.assigned.job_id)

    def _heard_now(self) -> None:
        self.due_at = asyncio.get_running_loop().time() + self._patience

    async def _send(self, sealed: Sealed, inbox: Inbox) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._link.send(InferenceRequest(request_id=self.assigned.job_id, encrypted_body=sealed))
        except (ConnectionError, TimeoutError):
            inbox.put(SendFailed(self.assigned.job_id))

    async def _take(self, chunk: InferenceResponseChunk) -> list[Answer]:
        """What one chunk means for the consumer. A bare role does not commit the answer."""
        text = await self._open(chunk)
        if text == STREAM_END:
            return []
        try:
            answer = self._read_text(text)
            if answer is not None:
                self.delivered.add(answer)
        except ValueError:
            raise await self._violation("a chunk was not an answer in the promised form", "bad_answer") from None
        self._patience = self._allowed.chunk_gap
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
        self.timing_us["provider_us"] = _since_us(self._sent_at)
        return [Started(self.assigned.machine, self.assigned.job_id, self.timing_us)]

    async def _open(self, chunk: InferenceResponseChunk) -> bytes:
        """Open a chunk; anything but a box from the registered key is a violation."""
        sealed = chunk.encrypted_data
        try:
            if chunk.data or sealed is None or sealed.ephemeral_public_key != self.assigned.machine.provider_key:
                raise ValueError
            return self._channel.open(sealed.ciphertext)
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
