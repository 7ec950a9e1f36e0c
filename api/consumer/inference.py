"""The life of one admitted request: attempts, commit at the first content, relay, and its one end.

One coroutine owns a request and reads one inbox, so its states cannot race. It is written for no dialect: it yields events
that a dialect renders. Source: provider protocol, sections 7 and 8; money, section 4.5.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from api.consumer.admission import Bounds, completion_bound
from api.consumer.answers import ProviderChunk, Whole, read_chunk, read_whole
from api.inbox import Aborted, ConsumerGone, Inbox, InboxOverflow, Item, MachineLost
from api.ports import Channel, Fleet, Jobs, Sealing
from domain.dispatch import Assigned, DispatchJob, Refused, ReleaseJob, SettleJob, Waiting
from domain.errors import (
    AttemptTimedOut,
    DarkbloomError,
    InvalidRequest,
    ModelNotAvailable,
    ProviderFailed,
    ServiceUnavailable,
)
from domain.protocol import (
    STREAM_END,
    Cancel,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    Sealed,
    Usage,
)
from domain.requests import JobFailure, RequestSettled
from domain.routing import Snapshot

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 3
RETRIED_CLIENT_ERRORS = frozenset({404, 408, 429})
"""Statuses below 500 that may be the machine's fault; the others follow from the request and are not tried again."""


class Timeouts(NamedTuple):
    """Seconds, from the settings of the same names."""

    queue_wait: float
    no_provider_wait: float
    first_signal: float
    first_content: float
    chunk_gap: float
    request_max: float
    settle_wait: float
    cancel_grace: float
    scheduler_reply: float = 20.0


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


class Finished(NamedTuple):
    """The machine's last word, after the money moved. ``usage`` is what was charged."""

    usage: Usage
    response_hash: str
    se_signature: str


Event = Started | Delta | Whole | Finished


class Consumed(Exception):
    """The consumer hung up, so nobody waits for an answer any more."""


class _GatewayStops(Exception):
    """This gateway cannot go on."""


class _AttemptFailed(Exception):
    """This attempt will not answer; another machine may."""

    def __init__(self, reason: str, status: int, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry = retry


class Tools(NamedTuple):
    """What every request needs of the gateway."""

    jobs: Jobs
    fleet: Fleet
    sealing: Sealing
    machine_link: Callable[[str], MachineLink | None]
    gateway_id: Callable[[], UUID]
    timeouts: Timeouts
    end_later: Callable[[SettleJob | ReleaseJob], None]
    """Keeps trying an end that could not be written or queued."""


class Inference:
    """An admitted request. Iterate ``events()`` once; whatever happens, the request has its one end afterwards."""

    def __init__(
        self,
        *,
        request_id: UUID,
        account_id: str,
        model: str,
        size_gb: float,
        bounds: Bounds,
        stop_bytes: int,
        stream: bool,
        body: bytes,
        inbox: Inbox,
        tools: Tools,
        timing_us: dict[str, int],
    ) -> None:
        self.request_id = request_id
        self._account_id = account_id
        self._model = model
        self._size_gb = size_gb
        self._bounds = bounds
        self._stop_bytes = stop_bytes
        self._stream = stream
        self._body = body
        self._inbox = inbox
        self._tools = tools
        self._timing_us = timing_us
        self._started_at = time.monotonic()
        self._failures: list[JobFailure] = []
        self._excluded: list[str] = []
        self._delivered_bytes = 0
        self._ended = False

    def consumer_gone(self) -> None:
        self._inbox.put(ConsumerGone())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Serve the request.

        Raises:
            DarkbloomError: it failed; before ``Started`` as a plain answer, afterwards as an event in the stream.
            Consumed: the consumer is gone.
        """
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    async with aclosing(self._attempt(attempt)) as attempt_events:
                        async for event in attempt_events:
                            yield event
                    return
                except _AttemptFailed as failed:
                    if not failed.retry or attempt == ATTEMPTS_MAX:
                        raise self._failure_of(failed) from None
        except Consumed:
            if not self._ended:
                await self._release("cancelled")
            raise
        except ModelNotAvailable:
            await self._release("rejected")
            raise
        finally:
            # Also reached when the surrounding task is cancelled or a bug shows up: no hold may be left behind.
            if not self._ended:
                await self._release("failed")

    # --- one attempt ---------------------------------------------------------------------------------------------

    async def _attempt(self, attempt: int) -> AsyncGenerator[Event, None]:
        began = time.perf_counter()
        try:
            assigned = await self._find_machine(attempt)
            self._timing_us["route_us"] = _since_us(began)
            machine = assigned.machine
            link = self._tools.machine_link(machine.session_id)
            if link is None:
                raise self._failed(assigned, "machine_lost", 502)
            link.open_job(assigned.job_id, self._inbox)
            try:
                async with aclosing(self._on_machine(assigned, link)) as machine_events:
                    async for event in machine_events:
                        yield event
            finally:
                link.close_job(assigned.job_id)
        finally:
            await self._give_slot_back(attempt)

    async def _find_machine(self, attempt: int) -> Assigned:
        timeouts = self._tools.timeouts
        deadline = self._started_at + timeouts.first_content
        await self._tools.jobs.send(
            DispatchJob(
                request_id=self.request_id,
                attempt=attempt,
                account_id=self._account_id,
                model=self._model,
                size_gb=self._size_gb,
                prompt_tokens=self._bounds.prompt_estimate,
                output_tokens=self._bounds.output_estimate,
                excluded=tuple(self._excluded),
                failures=tuple(self._failures),
                reply_to=self._tools.gateway_id(),
                deadline=time.time() + min(timeouts.queue_wait, deadline - time.monotonic()),
                may_wait=attempt == 1,
            )
        )
        wait_until = time.monotonic() + timeouts.scheduler_reply
        waiting = False
        while True:
            try:
                item = await self._next(wait_until - time.monotonic())
            except TimeoutError:
                if waiting:
                    raise ModelNotAvailable("No machine became free for this model in time; try again shortly.") from None
                raise ServiceUnavailable("The scheduler did not answer; nothing was charged, try again.") from None
            match item:
                case Assigned() if item.attempt == attempt:
                    return item
                case Waiting() if item.attempt == attempt and not waiting:
                    waiting = True
                    seconds = timeouts.queue_wait if item.machines else timeouts.no_provider_wait
                    wait_until = min(time.monotonic() + seconds, deadline)
                case Refused() if item.attempt == attempt:
                    raise self._refusal(item)

    def _refusal(self, refused: Refused) -> Exception:
        if refused.reason == "queue_full":
            return ModelNotAvailable("Too many requests are waiting for this model; try again shortly.")
        if self._failures:
            last = self._failures[-1]
            return _AttemptFailed(last.reason, last.status_code, retry=False)
        return ModelNotAvailable()

    async def _on_machine(self, assigned: Assigned, link: MachineLink) -> AsyncGenerator[Event, None]:
        channel = await self._send(assigned, link)
        started = False
        try:
            async with aclosing(self._relay(assigned, link, channel)) as relayed:
                async for event in relayed:
                    started = started or isinstance(event, Started)
                    yield event
        except (_AttemptFailed, TimeoutError, Consumed, _GatewayStops, InboxOverflow) as problem:
            await self._cancel(assigned, link)
            if isinstance(problem, Consumed | InboxOverflow) and started:
                await self._settle_what_was_delivered(assigned)
                raise Consumed from None
            if isinstance(problem, Consumed):
                raise
            if isinstance(problem, _GatewayStops):
                raise ServiceUnavailable("This gateway is stopping; nothing was charged, try again.") from None
            if not started:
                failed = problem if isinstance(problem, _AttemptFailed) else self._timed_out(assigned)
                raise failed from None
            if isinstance(problem, TimeoutError):
                raise AttemptTimedOut("The machine stopped answering; nothing was charged.") from None
            raise ProviderFailed("The machine failed while it answered; nothing was charged.") from None

    async def _send(self, assigned: Assigned, link: MachineLink) -> Channel:
        began = time.perf_counter()
        try:
            channel = self._tools.sealing.channel(assigned.machine.provider_key)
            sealed = Sealed(channel.public_key, channel.seal(self._body))
            self._timing_us["encrypt_us"] = _since_us(began)
            await link.send(InferenceRequest(request_id=assigned.job_id, encrypted_body=sealed))
        except (ValueError, ConnectionError):
            raise self._failed(assigned, "send_failed", 502) from None
        return channel

    async def _relay(self, assigned: Assigned, link: MachineLink, channel: Channel) -> AsyncGenerator[Event, None]:
        """Events from the sealed request to the settled completion."""
        timeouts = self._tools.timeouts
        sent, patience = time.perf_counter(), timeouts.first_signal
        held: list[ProviderChunk] = []
        started = False
        while True:
            item = await self._next(self._seconds_left(patience, committed=started))
            if isinstance(item, Assigned | Waiting | Refused) or item.request_id != assigned.job_id:
                continue  # late news of an earlier attempt
            match item:
                case InferenceAccepted():
                    self._timing_us["dispatch_us"] = _since_us(sent)
                    patience = max(patience, timeouts.first_content)
                case InferenceResponseChunk():
                    text = await self._open(item, assigned, link, channel)
                    if text == STREAM_END:
                        continue
                    answer = await self._read(text, assigned, link)
                    patience = timeouts.chunk_gap
                    if not started and not answer.has_content:
                        assert isinstance(answer, ProviderChunk)
                        held.append(answer)
                        continue
                    if not started:
                        started = True
                        self._timing_us["provider_us"] = _since_us(sent)
                        yield Started(assigned.machine, assigned.job_id, self._timing_us)
                        for chunk in held:
                            yield Delta(chunk)
                    self._delivered_bytes += answer.content_bytes
                    yield Delta(answer) if isinstance(answer, ProviderChunk) else answer
                case InferenceComplete():
                    if not started:
                        # A machine may end without a word; an empty answer is still an answer.
                        yield Started(assigned.machine, assigned.job_id, self._timing_us)
                    yield await self._settle(assigned, item)
                    return
                case InferenceError():
                    raise self._machine_error(assigned, item)
                case MachineLost():
                    raise self._failed(assigned, "machine_lost", 502)

    async def _next(self, seconds: float) -> Any:
        item: Item = await self._inbox.get(max(0.0, seconds))
        if isinstance(item, ConsumerGone):
            raise Consumed
        if isinstance(item, Aborted):
            raise _GatewayStops
        return item

    def _seconds_left(self, patience: float, *, committed: bool) -> float:
        timeouts = self._tools.timeouts
        in_all = timeouts.request_max if committed else timeouts.first_content
        return min(patience, self._started_at + in_all - time.monotonic())

    async def _open(
        self, chunk: InferenceResponseChunk, assigned: Assigned, link: MachineLink, channel: Channel
    ) -> bytes:
        """Open a chunk; anything but a box from the registered key is a violation (provider protocol, section 5.4)."""
        sealed = chunk.encrypted_data
        try:
            if chunk.data or sealed is None or sealed.ephemeral_public_key != assigned.machine.provider_key:
                raise ValueError
            return channel.open(sealed.ciphertext)
        except ValueError:
            await link.violated("a chunk was not sealed as the protocol demands")
            raise self._failed(assigned, "bad_encryption", 502) from None

    async def _read(self, text: bytes, assigned: Assigned, link: MachineLink) -> ProviderChunk | Whole:
        try:
            return read_chunk(text) if self._stream else read_whole(text)
        except ValueError:
            await link.violated("a chunk was not an answer in the promised form")
            raise self._failed(assigned, "bad_answer", 502) from None

    # --- failures ------------------------------------------------------------------------------------------------

    def _failed(self, assigned: Assigned, reason: str, status: int, *, retry: bool = True) -> _AttemptFailed:
        self._failures.append(JobFailure(assigned.job_id, reason, status))
        self._excluded.append(assigned.machine.session_id)
        return _AttemptFailed(reason, status, retry=retry)

    def _timed_out(self, assigned: Assigned) -> _AttemptFailed:
        # With the time for all attempts used up, another one could not answer either.
        in_time = time.monotonic() - self._started_at < self._tools.timeouts.first_content
        return self._failed(assigned, "timeout", 504, retry=in_time)

    def _machine_error(self, assigned: Assigned, error: InferenceError) -> _AttemptFailed:
        status = error.status_code if 400 <= error.status_code <= 599 else 502
        retry = status >= 500 or status in RETRIED_CLIENT_ERRORS
        return self._failed(assigned, "machine_error", status, retry=retry)

    def _failure_of(self, failed: _AttemptFailed) -> DarkbloomError:
        """The consumer's error. A machine's own text is never passed on: it may hold anything."""
        if 400 <= failed.status < 500 and failed.status not in RETRIED_CLIENT_ERRORS:
            return InvalidRequest(
                "The model's engine refused this request: it may be longer than the model's context, or use an option "
                "that the model does not have."
            )
        tried = len(self._failures)
        attempts = "attempt" if tried == 1 else "attempts"
        status = failed.status if failed.status >= 500 else 503
        return ProviderFailed(f"No machine answered after {tried} {attempts}; nothing was charged.", http_status=status)

    async def _cancel(self, assigned: Assigned, link: MachineLink) -> None:
        try:
            async with asyncio.timeout(2.0):
                await link.send(Cancel(request_id=assigned.job_id))
        except (ConnectionError, TimeoutError):
            log.info("job %s could not be cancelled: its machine is gone", assigned.job_id)

    # --- ends ----------------------------------------------------------------------------------------------------

    async def _settle_what_was_delivered(self, assigned: Assigned) -> None:
        """The consumer left mid-answer: the machine's own last word counts, if it comes in time."""
        deadline = time.monotonic() + self._tools.timeouts.cancel_grace
        while (seconds := deadline - time.monotonic()) > 0:
            try:
                item = await self._inbox.get(seconds)
            except (TimeoutError, InboxOverflow):
                break
            if isinstance(item, InferenceComplete) and item.request_id == assigned.job_id and self._delivered_bytes:
                await self._settle(assigned, item)
                return
            if isinstance(item, InferenceComplete | InferenceError | MachineLost) and item.request_id == assigned.job_id:
                break
        await self._release("no_terminal")

    async def _settle(self, assigned: Assigned, complete: InferenceComplete) -> Finished:
        job = SettleJob(
            request_id=self.request_id,
            account_id=self._account_id,
            job_id=assigned.job_id,
            claimed_prompt_tokens=complete.usage.prompt_tokens,
            claimed_completion_tokens=complete.usage.completion_tokens,
            completion_bound=completion_bound(self._delivered_bytes, self._stop_bytes),
            response_hash=complete.response_hash[:64],
            se_signature=complete.se_signature[:256],
        )
        settled = await self._end(job)
        usage = complete.usage
        if isinstance(settled, RequestSettled):
            usage = Usage(settled.prompt_tokens, settled.completion_tokens)
        return Finished(usage, complete.response_hash, complete.se_signature)

    async def _release(self, reason: str) -> None:
        await self._end(
            ReleaseJob(
                request_id=self.request_id,
                account_id=self._account_id,
                reason=reason,
                failures=tuple(self._failures),
            )
        )

    async def _end(self, job: SettleJob | ReleaseJob) -> object:
        """Record the end at once; when that does not work in time, it is retried without anybody waiting for it."""
        self._ended = True
        try:
            async with asyncio.timeout(self._tools.timeouts.settle_wait):
                return await self._tools.jobs.end_now(job)
        except (DarkbloomError, TimeoutError) as error:
            log.warning("the end of request %s is recorded later: %s", self.request_id, type(error).__name__)
            self._tools.end_later(job)
            return None

    async def _give_slot_back(self, attempt: int) -> None:
        try:
            if attempt == 1:
                await self._tools.fleet.leave_queue(self.request_id)
            for job in await self._tools.fleet.release(self.request_id, attempt):
                await self._tools.jobs.send(job)
        except DarkbloomError as error:
            log.warning("a slot is given back later: %s", type(error).__name__)


def _since_us(began: float) -> int:
    return int((time.perf_counter() - began) * 1_000_000)
