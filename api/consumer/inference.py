"""The life of one admitted request: up to three attempts, commit at the first content, and its one end.

One coroutine owns a request and reads one inbox, so its states cannot race. It is written for no dialect: it yields
events that a dialect renders. Source: provider protocol, sections 7 and 8; money, section 4.5.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple
from uuid import UUID

from api.consumer.admission import Bounds, completion_bound
from api.consumer.answers import Whole
from api.consumer.attempt import RETRIED_CLIENT_ERRORS, Attempt, AttemptFailed, Delta, MachineLink, Started
from api.inbox import Aborted, ConsumerGone, Inbox, InboxOverflow, Item, KeyRevoked, MachineLost
from api.ports import Fleet, Jobs, Sealing
from domain.dispatch import Assigned, DispatchJob, Refused, ReleaseJob, SettleJob, Waiting
from domain.errors import (
    AttemptTimedOut,
    AuthenticationFailed,
    DarkbloomError,
    InvalidRequest,
    ModelNotAvailable,
    ProviderFailed,
    ServiceUnavailable,
)
from domain.protocol import InferenceComplete, InferenceError, Usage
from domain.requests import JobFailure, RequestReleased, RequestSettled
from domain.routing import ANY_MACHINE, Constraints, Observation, ObservationKind, Snapshot, retry_after_seconds

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 3


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


class Finished(NamedTuple):
    """The machine's last word, after the money moved. ``usage`` is what was charged, or, while that is not known yet,
    what the machine says; ``cost_micro_usd`` is None then."""

    usage: Usage
    response_hash: str
    se_signature: str
    cost_micro_usd: int | None = None


Event = Started | Delta | Whole | Finished


class Consumed(Exception):
    """The consumer hung up, so nobody waits for an answer any more."""


class _Stopped(Exception):
    """The request cannot go on: what its consumer is told, and the reason of its release."""

    def __init__(self, error: DarkbloomError, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason


_STOPS = {
    KeyRevoked: (AuthenticationFailed, "This API key was revoked; what was delivered before is charged.", "cancelled"),
    Aborted: (ServiceUnavailable, "This gateway is stopping; nothing was charged, try again.", "failed"),
}


class Tools(NamedTuple):
    """What every request needs of the gateway. ``end_later`` keeps trying an end that could not be written, ``observe``
    takes what a machine did, ``unreachable`` names gateways that were just found out of reach."""

    jobs: Jobs
    fleet: Fleet
    sealing: Sealing
    machine_link: Callable[[Snapshot], MachineLink | None]
    gateway_id: Callable[[], UUID]
    timeouts: Timeouts
    end_later: Callable[[SettleJob | ReleaseJob], None]
    observe: Callable[[str, Observation], None]
    unreachable: Callable[[], tuple[str, ...]] = tuple


class Inference:
    """An admitted request. Iterate ``events()`` once; whatever happens, the request has its one end afterwards.

    ``tokens_used`` is what it was charged for, also when its consumer left in the middle of the answer.
    """

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
        constraints: Constraints = ANY_MACHINE,
    ) -> None:
        self.request_id = request_id
        self.tokens_used = 0
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
        self._constraints = constraints
        self._started_at = time.monotonic()
        self._failures: list[JobFailure] = []
        self._excluded: list[str] = []
        self._looking_for: int | None = None
        self._given_back: int | None = None
        self._ended = False

    def consumer_gone(self) -> None:
        self._inbox.interrupt(ConsumerGone())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Serve the request.

        Raises:
            DarkbloomError: it failed; before ``Started`` as a plain answer, afterwards as an event in the stream.
            Consumed: the consumer is gone.
        """
        reason = "failed"
        try:
            for number in range(1, ATTEMPTS_MAX + 1):
                try:
                    async with aclosing(self._attempt(number)) as attempt_events:
                        async for event in attempt_events:
                            yield event
                    return
                except AttemptFailed as failed:
                    if not failed.retry or number == ATTEMPTS_MAX:
                        raise self._failure_of(failed) from None
        except Consumed:
            reason = "cancelled"
            raise
        except ModelNotAvailable:
            reason = "rejected"
            raise
        except _Stopped as stopped:
            reason = stopped.reason
            raise stopped.error from None
        finally:
            # Also reached when the surrounding task is cancelled or a bug shows up: no hold may be left behind.
            if not self._ended:
                await self._release(reason)
            if self._looking_for is not None:
                await self._stop_looking(self._looking_for)

    # --- one attempt ---------------------------------------------------------------------------------------------

    async def _attempt(self, number: int) -> AsyncGenerator[Event, None]:
        began = time.perf_counter()
        self._looking_for = number
        assigned = await self._find_machine(number)
        self._looking_for = None
        self._timing_us["route_us"] = int((time.perf_counter() - began) * 1_000_000)
        try:
            link = self._tools.machine_link(assigned.machine)
            if link is None:
                raise self._note(assigned, AttemptFailed("machine_lost", 502))
            link.open_job(assigned.job_id, self._inbox)
            try:
                async with aclosing(self._on_machine(assigned, link)) as machine_events:
                    async for event in machine_events:
                        yield event
            finally:
                link.close_job(assigned.job_id)
                self._inbox.forget(assigned.job_id)
        finally:
            await self._give_slot_back(number)

    async def _find_machine(self, number: int) -> Assigned:
        timeouts = self._tools.timeouts
        deadline = self._started_at + timeouts.first_content
        may_wait = number == 1  # and then it may be dispatched much later, when a gateway out of reach may be back
        out_of_reach = () if may_wait else self._tools.unreachable()
        await self._tools.jobs.send(
            DispatchJob(
                request_id=self.request_id,
                attempt=number,
                account_id=self._account_id,
                model=self._model,
                size_gb=self._size_gb,
                prompt_tokens=self._bounds.prompt_estimate,
                output_tokens=self._bounds.output_estimate,
                excluded=(*self._excluded, *out_of_reach),
                failures=tuple(self._failures),
                reply_to=self._tools.gateway_id(),
                deadline=time.time() + min(timeouts.queue_wait, deadline - time.monotonic()),
                may_wait=may_wait,
                constraints=self._constraints,
            )
        )
        wait_until = time.monotonic() + timeouts.scheduler_reply
        waiting: Waiting | None = None
        while True:
            try:
                item = await self._next(wait_until - time.monotonic())
            except TimeoutError:
                raise _nobody_came(waiting) from None
            match item:
                case Assigned() if item.attempt == number:
                    return item
                case Waiting() if item.attempt == number and waiting is None:
                    waiting = item
                    seconds = timeouts.queue_wait if item.machines else timeouts.no_provider_wait
                    wait_until = min(time.monotonic() + seconds, deadline)
                case Refused() if item.attempt == number:
                    raise self._refusal(item)

    def _refusal(self, refused: Refused) -> Exception:
        if refused.reason == "queue_full":
            return _come_back("Too many requests are waiting for this model; nothing was charged.", refused)
        if refused.reason == "hopeless":
            return _come_back(
                "The queue for this model is longer than a request may wait; nothing was charged.", refused
            )
        if self._failures:
            last = self._failures[-1]
            return AttemptFailed(last.reason, last.status_code, retry=False)
        return ModelNotAvailable()

    async def _on_machine(self, assigned: Assigned, link: MachineLink) -> AsyncGenerator[Event, None]:
        timeouts = self._tools.timeouts
        attempt = Attempt(
            assigned,
            link,
            sealing=self._tools.sealing,
            next_item=self._next_in_time,
            stream=self._stream,
            first_signal_seconds=timeouts.first_signal,
            first_content_seconds=timeouts.first_content,
            chunk_gap_seconds=timeouts.chunk_gap,
            timing_us=self._timing_us,
        )
        at_work = True
        try:
            async with aclosing(attempt.run(self._body)) as items:
                async for item in items:
                    if isinstance(item, InferenceComplete):
                        at_work = False
                        self._observe(assigned, "job_done", self._timing_us.get("provider_us", 0) / 1000)
                        # The machine is free now, however long its consumer takes to read the end.
                        finished, _ = await asyncio.gather(
                            self._settle(attempt, item), self._give_slot_back(assigned.attempt)
                        )
                        yield finished
                    else:
                        yield item
        except (AttemptFailed, TimeoutError, Consumed, InboxOverflow, _Stopped) as problem:
            at_work = False
            await attempt.cancel()
            raise await self._consequence(attempt, problem) from None
        finally:
            if at_work:  # cancelled from outside, or a bug: the machine must not go on for nobody
                await attempt.cancel()

    async def _consequence(self, attempt: Attempt, problem: Exception) -> Exception:
        """What the end of an attempt means for the request: another try, an error, or the end of a conversation."""
        key_revoked = isinstance(problem, _Stopped) and problem.reason == "cancelled"
        if attempt.started and (key_revoked or isinstance(problem, Consumed | InboxOverflow)):
            await self._settle_what_was_delivered(attempt)
        if isinstance(problem, Consumed | _Stopped):
            return problem
        if isinstance(problem, InboxOverflow) and attempt.started:
            return AttemptTimedOut("The answer was not read as fast as it came; what was delivered is charged.")
        if not attempt.started:
            # With the time for all attempts used up, another one could not answer either.
            in_time = time.monotonic() - self._started_at < self._tools.timeouts.first_content
            failed = problem if isinstance(problem, AttemptFailed) else AttemptFailed("timeout", 504, retry=in_time)
            return self._note(attempt.assigned, failed)
        if isinstance(problem, TimeoutError):
            self._note(attempt.assigned, AttemptFailed("timeout", 504))
            return AttemptTimedOut("The machine stopped answering; nothing was charged.")
        assert isinstance(problem, AttemptFailed)
        self._note(attempt.assigned, problem)
        return ProviderFailed("The machine failed while it answered; nothing was charged.")

    async def _next(self, seconds: float) -> Any:
        item: Item = await self._inbox.get(seconds)
        if isinstance(item, ConsumerGone):
            raise Consumed
        if isinstance(item, KeyRevoked | Aborted):
            error, message, reason = _STOPS[type(item)]
            raise _Stopped(error(message), reason)
        return item

    async def _next_in_time(self, patience_seconds: float, started: bool) -> Any:
        timeouts = self._tools.timeouts
        in_all = timeouts.request_max if started else timeouts.first_content
        return await self._next(min(patience_seconds, self._started_at + in_all - time.monotonic()))

    # --- failures ------------------------------------------------------------------------------------------------

    def _note(self, assigned: Assigned, failed: AttemptFailed) -> AttemptFailed:
        if failed.retry or failed.status >= 500:  # what follows from the request is not the machine's fault
            self._observe(assigned, "job_failed")
        self._failures.append(JobFailure(assigned.job_id, failed.reason, failed.status))
        self._excluded.append(assigned.machine.session_id)
        return failed

    def _observe(self, assigned: Assigned, kind: ObservationKind, amount: float = 0.0) -> None:
        self._tools.observe(assigned.machine.machine_id, Observation(kind, time.time(), amount))

    def _failure_of(self, failed: AttemptFailed) -> DarkbloomError:
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

    # --- ends ----------------------------------------------------------------------------------------------------

    async def _settle_what_was_delivered(self, attempt: Attempt) -> None:
        """The consumer left mid-answer: the machine's own last word counts, if it comes in time."""
        self._inbox.mute()
        deadline = time.monotonic() + self._tools.timeouts.cancel_grace
        last_words = InferenceComplete | InferenceError | MachineLost
        while (seconds := deadline - time.monotonic()) > 0:
            try:
                item = await self._inbox.get(seconds)
            except TimeoutError:
                break
            if isinstance(item, last_words) and item.request_id == attempt.assigned.job_id:
                if isinstance(item, InferenceComplete) and attempt.delivered_bytes:
                    await self._settle(attempt, item)
                    return
                break
        await self._release("no_terminal")

    async def _settle(self, attempt: Attempt, complete: InferenceComplete) -> Finished:
        job = SettleJob(
            request_id=self.request_id,
            account_id=self._account_id,
            job_id=attempt.assigned.job_id,
            claimed_prompt_tokens=complete.usage.prompt_tokens,
            claimed_completion_tokens=complete.usage.completion_tokens,
            completion_bound=completion_bound(attempt.delivered_bytes, self._stop_bytes),
        )
        settled = await self._end(job)
        usage, cost = complete.usage, None
        if isinstance(settled, RequestSettled):
            usage, cost = Usage(settled.prompt_tokens, settled.completion_tokens), settled.cost
        elif settled is not None:
            log.error("request %s was answered, but had been released before", self.request_id)
        self.tokens_used = usage.prompt_tokens + usage.completion_tokens
        return Finished(usage, complete.response_hash, complete.se_signature, cost)

    async def _release(self, reason: str) -> None:
        await self._end(
            ReleaseJob(
                request_id=self.request_id,
                account_id=self._account_id,
                reason=reason,
                failures=tuple(self._failures),
            )
        )

    async def _end(self, job: SettleJob | ReleaseJob) -> RequestSettled | RequestReleased | None:
        """Record the end at once; when that does not work in time, it is retried without anybody waiting for it."""
        self._ended = True
        try:
            async with asyncio.timeout(self._tools.timeouts.settle_wait):
                return await self._tools.jobs.end_now(job)
        except (DarkbloomError, TimeoutError) as error:
            log.warning("the end of request %s is recorded later: %s", self.request_id, type(error).__name__)
            self._tools.end_later(job)
            return None

    async def _stop_looking(self, number: int) -> None:
        """Undo an attempt that got no machine. Only after the request's end is recorded: a scheduler that comes later
        finds it ended, and one that came just before has left a claim that can be seen now."""
        try:
            await self._tools.fleet.leave_queue(self.request_id)
        except DarkbloomError as error:
            log.warning("a place in the queue is given up later: %s", type(error).__name__)
        await self._give_slot_back(number)

    async def _give_slot_back(self, number: int) -> None:
        if number == self._given_back:
            return
        self._given_back = number
        try:
            for job in await self._tools.fleet.release(self.request_id, number):
                await self._tools.jobs.send(job)
        except DarkbloomError as error:
            log.warning("a slot is given back later: %s", type(error).__name__)


def _nobody_came(waiting: Waiting | None) -> DarkbloomError:
    if waiting is None:
        return ServiceUnavailable("The scheduler did not answer; nothing was charged, try again.")
    if waiting.machines == 0:
        return ModelNotAvailable(
            "No machine that serves this model is connected; nothing was charged. GET /v1/models lists what is served."
        )
    return _come_back("No machine became free for this model in time; nothing was charged.", waiting)


def _come_back(what: str, place: Waiting | Refused) -> ModelNotAvailable:
    """A refusal that says where in the queue the request is and when to ask again."""
    wait = "" if place.wait_seconds is None else f", some {max(1.0, place.wait_seconds):.0f} seconds from its turn"
    seconds = retry_after_seconds(place.position, place.wait_seconds)
    error = ModelNotAvailable(
        f"{what} It was number {place.position} in the queue{wait}; try again in {seconds} seconds."
    )
    error.retry_after_seconds = seconds
    return error
