"""The life of one admitted request: up to three attempts, commit at the first content, and its one end.

One coroutine owns a request and reads one inbox, so its states cannot race, and neither can two of its attempts: when
the first content is late, a second machine is asked while the first goes on, and the inbox says who was first. What the
coroutine does to others (a message to the scheduler, a sealed request to a machine, a cancel) is done beside it, and
what comes of it arrives in the inbox. It is written for no dialect: it yields events that a dialect renders. Source:
provider protocol, sections 7, 8 and 13; money, section 4.5.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from itertools import count
from typing import NamedTuple
from uuid import UUID

from api.consumer.admission import Bounds
from api.consumer.answers import ProviderChunk, ProviderDelta, ReadText
from api.consumer.attempt import (
    RETRIED_CLIENT_ERRORS,
    UNREAD,
    Answer,
    Attempt,
    AttemptFailed,
    Delta,
    MachineLink,
    Patience,
)
from api.consumer.ending import Ending
from api.consumer.expected import Expected
from api.consumer.search import Search, not_queued, refusal_of
from api.inbox import Aborted, ConsumerGone, Inbox, Item, JobEvent, KeyRevoked, MachineLost, NotQueued
from api.ports import Fleet, Jobs, Sealing
from domain.catalog import CatalogModel
from domain.dispatch import Assigned, DispatchJob, Refused, ReleaseJob, SettleJob, Waiting
from domain.errors import (
    AttemptTimedOut,
    AuthenticationFailed,
    DarkbloomError,
    InvalidRequest,
    MachineBusy,
    ModelNotAvailable,
    ProviderFailed,
    ServiceUnavailable,
)
from domain.protocol import InferenceComplete, InferenceError, InferenceResponseChunk, Usage
from domain.requests import JobFailure, RequestSettled
from domain.routing import ANY_MACHINE, Constraints, Hedging, Observation, ObservationKind, Snapshot

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 3

LINE_BYTES_PER_SECOND = 1_000_000
"""How fast a machine's line must be at least. A large body gets the time that it takes, before its machine is due to
say a first word."""

CHUNKS_AT_ONCE_MAX = 64
"""Chunks that go out in one write when they are here together; a longer burst goes out in parts."""


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


Event = Answer | Finished


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
    takes what a machine did, ``unreachable`` names gateways that were just found out of
    reach, with the time until when they are passed over."""

    jobs: Jobs
    fleet: Fleet
    sealing: Sealing
    machine_link: Callable[[Snapshot], MachineLink | None]
    gateway_id: Callable[[], UUID]
    timeouts: Timeouts
    end_later: Callable[[SettleJob | ReleaseJob], None]
    observe: Callable[[str, Observation], None]
    hedging: Hedging
    unreachable: Callable[[], Mapping[str, float]] = dict


class Inference:
    """An admitted request. Iterate ``events()`` once; whatever happens, the request has its one end afterwards.

    ``tokens_used`` is what it was charged for, also when its consumer left in the middle of the answer.
    """

    def __init__(
        self,
        *,
        request_id: UUID,
        account_id: str,
        model: CatalogModel,
        bounds: Bounds,
        expected: Expected,
        reader: Callable[[], ReadText],
        body: bytes,
        inbox: Inbox,
        tools: Tools,
        timing_us: dict[str, int],
        constraints: Constraints = ANY_MACHINE,
        settle_together: asyncio.Barrier | None = None,
        background: bool = False,
    ) -> None:
        """With ``settle_together`` nothing is settled before all of its parties are answered."""
        self.request_id = request_id
        self.tokens_used = 0
        self._account_id = account_id
        self._model = model
        self._bounds = bounds
        self._expected = expected
        self._reader = reader
        self._body = body
        self._inbox = inbox
        self._tools = tools
        self._timing_us = timing_us
        self._constraints = constraints
        self._settle_together = settle_together
        self._background = background
        self._started_at = _now()
        self._ending = Ending(
            request_id,
            jobs=tools.jobs,
            fleet=tools.fleet,
            end_later=tools.end_later,
            wait_seconds=tools.timeouts.settle_wait,
        )
        self._numbers = count(1)
        self._search: Search | None = None
        self._running: dict[str, Attempt] = {}
        self._answering: Attempt | None = None
        self._attempts = 0
        self._hedged: Attempt | None = None
        """The attempt that another one was to overtake."""
        self._unanswered: set[int] = set()
        """Attempts that the scheduler was asked for, and may still find a machine for."""
        self._failures: list[JobFailure] = []
        self._excluded: list[str] = []
        self._may_wait = not background
        """Whether it may still queue up: until a machine fails it."""
        self._final: AttemptFailed | None = None
        """A failure that follows from the request, so that no other machine is tried."""
        self._beside: set[asyncio.Task[None]] = set()

    @property
    def request_ids(self) -> tuple[UUID, ...]:
        return (self.request_id,)

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
            async with aclosing(self._course()) as course:
                async for event in course:
                    yield event
        except Consumed:
            reason = "cancelled"
            await self._settle_what_was_delivered()
            raise
        except ModelNotAvailable as unavailable:
            reason = "rejected"
            raise (MachineBusy() if self._constraints.only_account else unavailable) from None
        except _Stopped as stopped:
            reason = stopped.reason
            if reason == "cancelled":
                await self._settle_what_was_delivered()
            raise stopped.error from None
        finally:
            # Also reached when the surrounding task is cancelled or a bug shows up: no machine may go on for nobody,
            # and no hold may be left behind.
            for attempt in list(self._running.values()):
                self._drop(attempt)
            if not self._ending.ended:
                await self._release(reason)
            await self._leave_nothing_behind()

    async def _course(self) -> AsyncGenerator[Event, None]:
        """From the first search to the machine's last word."""
        self._tools.hedging.count_request()
        self._look_for_a_machine()
        while not self._ending.ended:
            item = await self._next()
            match item:
                case None:
                    await self._time_is_up()
                case Assigned() | Waiting() | Refused() | NotQueued():
                    self._hear(item)
                case ConsumerGone():
                    raise Consumed
                case KeyRevoked() | Aborted():
                    error, message, reason = _STOPS[type(item)]
                    raise _Stopped(error(message), reason)
                case _ if (attempt := self._running.get(item.request_id)) is not None:
                    async with aclosing(self._take(attempt, item)) as steps:
                        async for step in steps:
                            yield await self._complete(attempt, step) if isinstance(step, InferenceComplete) else step

    # --- time ----------------------------------------------------------------------------------------------------

    async def _next(self) -> Item | None:
        """What comes next, or None when the time of something is up."""
        now = _now()
        if now >= self._ends_at:
            return None
        due = [self._ends_at, *(attempt.due_at for attempt in self._running.values())]
        if self._search is not None:
            due.append(self._search.until)
        if (late_at := self._late_at()) is not None:
            due.append(late_at)
        try:
            return await self._inbox.get(min(due) - now)
        except TimeoutError:
            return None

    @property
    def _ends_at(self) -> float:
        timeouts = self._tools.timeouts
        return self._started_at + (timeouts.first_content if self._answering is None else timeouts.request_max)

    def _late_at(self) -> float | None:
        """When the only attempt at work is late enough for a second one beside it."""
        alone = len(self._running) == 1 and self._search is None and self._answering is None
        if (
            not alone
            or self._background
            or self._hedged is not None
            or self._final is not None
            or self._attempts >= ATTEMPTS_MAX
        ):
            return None
        (attempt,) = self._running.values()
        late_after = self._tools.hedging.late_after_seconds((self._model.id, self._expected.stream))
        return None if late_after is None else attempt.began_at + late_after

    async def _time_is_up(self) -> None:
        now = _now()
        over = now >= self._ends_at
        if (late_at := self._late_at()) is not None and late_at <= now and not over:
            self._hedge()
        if self._search is not None and (over or self._search.until <= now):
            search, self._search = self._search, None
            self._go_on_without_machine(search.nobody_came())
        for attempt in list(self._running.values()):
            if over or attempt.due_at <= now:
                # With the time for all attempts used up, another one could not answer either.
                await self._fail(attempt, AttemptFailed("timeout", 504, retry=not over))

    # --- finding machines ----------------------------------------------------------------------------------------

    def _look_for_a_machine(self, *, hedge: bool = False) -> None:
        timeouts, now = self._tools.timeouts, _now()
        number = next(self._numbers)
        self._search = Search(number, hedge=hedge, until=now + timeouts.scheduler_reply)
        self._unanswered.add(number)
        at_work = (attempt.assigned.machine.session_id for attempt in self._running.values())
        job = DispatchJob(
            request_id=self.request_id,
            attempt=number,
            account_id=self._account_id,
            model=self._model.id,
            kind=self._model.kind,
            size_gb=self._model.size_gb,
            prompt_tokens=self._bounds.prompt_estimate,
            output_tokens=self._bounds.output_estimate,
            excluded=(*self._excluded, *at_work),
            out_of_reach=dict(self._tools.unreachable()),
            failures=tuple(self._failures),
            reply_to=self._tools.gateway_id(),
            deadline=time.time() + min(timeouts.queue_wait, self._ends_at - now),
            may_wait=self._may_wait and not hedge,
            hedge=hedge,
            background=self._background,
            constraints=self._constraints,
        )
        self._do_beside(self._queue(job))

    async def _queue(self, job: DispatchJob) -> None:
        try:
            await self._tools.jobs.send(job)
        except DarkbloomError as error:
            log.warning("attempt %d of %s is not queued: %s", job.attempt, self.request_id, type(error).__name__)
            self._inbox.put(NotQueued(self.request_id, job.attempt))

    def _hedge(self) -> None:
        """The first content is late: race a second machine, if the budget allows."""
        (self._hedged,) = self._running.values()
        hedging = self._tools.hedging
        if hedging.begin():
            log.info(
                "attempt %d of %s is late, a second machine is asked: hedge %d of %d requests, %d won",
                self._hedged.assigned.attempt,
                self.request_id,
                hedging.hedges,
                hedging.requests,
                hedging.wins,
            )
            self._look_for_a_machine(hedge=True)

    def _hear(self, notice: Assigned | Waiting | Refused | NotQueued) -> None:
        if isinstance(notice, Assigned | Refused):
            self._unanswered.discard(notice.attempt)
        search = self._search
        if search is None or notice.attempt != search.number:
            if isinstance(notice, Assigned):
                self._turn_down(notice)
            return
        if isinstance(notice, Waiting):
            timeouts = self._tools.timeouts
            seconds = timeouts.queue_wait if notice.machines else timeouts.no_provider_wait
            search.wait(notice, until=min(_now() + seconds, self._ends_at))
            return
        self._search = None
        if isinstance(notice, Assigned):
            self._begin(notice, search)
        elif isinstance(notice, NotQueued):
            self._go_on_without_machine(not_queued())
        else:
            if search.hedge:
                self._tools.hedging.undo()
                if not self._running:  # what is too little for a hedge may be enough for another try
                    self._try_again()
                    return
            self._go_on_without_machine(refusal_of(notice))

    def _turn_down(self, assigned: Assigned) -> None:
        """A machine was found that nobody looks for any more, or a message came twice."""
        if assigned.job_id in self._running:
            return
        if all(failure.job_id != assigned.job_id for failure in self._failures):
            self._failures.append(_overtaken(assigned.job_id))
        self._do_beside(self._ending.give_slot_back(assigned.attempt))

    def _go_on_without_machine(self, why: DarkbloomError) -> None:
        """A search came to nothing, which only matters when no attempt is at work. What a gateway failed is
        no answer for a consumer that could have waited."""
        if not self._running:
            raise why if self._may_wait or not self._failures else self._failure()

    # --- attempts ------------------------------------------------------------------------------------------------

    def _begin(self, assigned: Assigned, search: Search) -> None:
        self._attempts += 1
        link = self._tools.machine_link(assigned.machine)
        timing_us = self._timing_us | {"route_us": search.took_us}
        timeouts = self._tools.timeouts
        first_signal = timeouts.first_signal + len(self._body) / LINE_BYTES_PER_SECOND
        try:
            if link is None:
                raise AttemptFailed("machine_lost", 502)
            attempt = Attempt(
                assigned,
                link,
                sealing=self._tools.sealing,
                read_text=self._reader(),
                expected=self._expected,
                patience=Patience(first_signal, timeouts.first_content, timeouts.chunk_gap),
                timing_us=timing_us,
            )
            attempt.begin(self._body, self._inbox)
        except (AttemptFailed, ValueError) as problem:
            failed = problem if isinstance(problem, AttemptFailed) else AttemptFailed("send_failed", 502)
            self._do_beside(self._ending.give_slot_back(assigned.attempt))
            self._note(assigned, failed)
            self._try_again()
        else:
            self._running[assigned.job_id] = attempt

    async def _take(self, attempt: Attempt, event: JobEvent) -> AsyncGenerator[Answer | InferenceComplete, None]:
        """What an event means for the consumer. A chunk takes those along that are here already behind it: they can go
        out in one write, which is dear, and none of them waits for another."""
        choices: list[ProviderDelta] = []
        failed: AttemptFailed | None = None
        more: JobEvent | None = event
        taken = 0
        while more is not None:
            try:
                steps = await attempt.take(more)
            except AttemptFailed as problem:
                failed = problem
                break
            if attempt.started and self._answering is None:
                self._commit(attempt)
            for step in steps:
                if isinstance(step, Delta):
                    choices += step.chunk.choices
                else:
                    yield step
            taken += 1
            goes_on = isinstance(more, InferenceResponseChunk) and taken < CHUNKS_AT_ONCE_MAX
            more = self._inbox.ready_output(attempt.assigned.job_id) if goes_on else None
        if choices:
            yield Delta(ProviderChunk(tuple(choices)))
        if failed is not None:
            await self._fail(attempt, failed)

    def _commit(self, winner: Attempt) -> None:
        """The first content is here: this machine is the one, and nobody else's answer counts any more."""
        self._answering, self._search = winner, None
        hedging, kind = self._tools.hedging, (self._model.id, self._expected.stream)
        hedging.note_first_content(kind, winner.seconds_at_work)
        for loser in [attempt for attempt in self._running.values() if attempt is not winner]:
            hedging.note_first_content(kind, loser.seconds_at_work)  # at least so long
            if loser is self._hedged:
                hedging.won()
            if not loser.heard:
                self._observe(loser.assigned, "job_failed")
            self._failures.append(_overtaken(loser.assigned.job_id))
            self._drop(loser)

    async def _fail(self, attempt: Attempt, failed: AttemptFailed) -> None:
        """An attempt is over: another try, an error, or the end of a conversation."""
        if failed.reason == UNREAD:
            await self._settle_what_was_delivered()
            raise AttemptTimedOut("The answer was not read as fast as it came; what was delivered is charged.")
        self._drop(attempt)
        self._note(attempt.assigned, failed)
        if not attempt.started:
            if not failed.retry:
                self._final = failed
            self._try_again()
        elif failed.reason == "timeout":
            raise AttemptTimedOut("The machine stopped answering; nothing was charged.")
        else:
            raise ProviderFailed("The machine failed while it answered; nothing was charged.")

    def _try_again(self) -> None:
        """After a failure, if nothing else is under way."""
        if self._running or self._search is not None:
            return
        if self._final is not None or self._attempts >= ATTEMPTS_MAX:
            raise self._failure()
        self._look_for_a_machine()

    def _drop(self, attempt: Attempt, *, at_work: bool = True) -> None:
        """Nothing that this attempt still says counts from here on; its machine is told beside."""
        self._running.pop(attempt.assigned.job_id, None)
        self._inbox.forget(attempt.assigned.job_id)
        self._do_beside(self._let_go(attempt, at_work))

    async def _let_go(self, attempt: Attempt, at_work: bool) -> None:
        try:
            await attempt.leave(at_work=at_work)
        finally:
            await self._ending.give_slot_back(attempt.assigned.attempt)

    def _note(self, assigned: Assigned, failed: AttemptFailed) -> None:
        """What a gateway failed is held against nobody: neither against its machine nor against the request, which may
        still queue up."""
        self._failures.append(JobFailure(assigned.job_id, failed.reason, failed.status))
        from_the_request = not failed.retry and failed.status < 500
        did_not_get_there = failed.reason in ("machine_lost", "send_failed", "timeout")
        if did_not_get_there and assigned.machine.gateway_id in self._tools.unreachable():
            return
        self._may_wait = False
        self._excluded.append(assigned.machine.session_id)
        if not from_the_request:
            self._observe(assigned, "job_failed")

    def _observe(self, assigned: Assigned, kind: ObservationKind, amount: float = 0.0) -> None:
        self._tools.observe(assigned.machine.machine_id, Observation(kind, time.time(), amount))

    def _failure(self) -> DarkbloomError:
        """The consumer's error. A machine's own text is never passed on: it may hold anything."""
        status = self._failures[-1].status_code if self._final is None else self._final.status
        if 400 <= status < 500 and status not in RETRIED_CLIENT_ERRORS:
            return InvalidRequest(
                "The model's engine refused this request: it may be longer than the model's context, or use an option "
                "that the model does not have."
            )
        tried = len(self._failures)
        attempts = "attempt" if tried == 1 else "attempts"
        return ProviderFailed(
            f"No machine answered after {tried} {attempts}; nothing was charged.",
            http_status=status if status >= 500 else 503,
        )

    # --- ends ----------------------------------------------------------------------------------------------------

    async def _complete(self, attempt: Attempt, complete: InferenceComplete) -> Finished:
        self._observe(attempt.assigned, "job_done", attempt.timing_us.get("provider_us", 0) / 1000)
        self._drop(attempt, at_work=False)  # its slot is free now, whatever its settlement waits for
        if self._settle_together is not None:
            await self._settle_together.wait()
        return await self._settle(attempt, complete)

    async def _settle_what_was_delivered(self) -> None:
        """Nobody reads on in the middle of an answer: the machine's own last word counts, if it comes in time."""
        attempt = self._answering
        if attempt is None or self._ending.ended:
            return
        await attempt.cancel()
        self._inbox.mute()
        last_word = await self._last_word_of(attempt)
        self._drop(attempt, at_work=False)
        if last_word is not None and attempt.delivered.content_bytes:
            await self._settle(attempt, last_word)
        else:
            await self._release("no_terminal")

    async def _last_word_of(self, attempt: Attempt) -> InferenceComplete | None:
        deadline = _now() + self._tools.timeouts.cancel_grace
        while True:
            try:
                item = await self._inbox.get(deadline - _now())
            except TimeoutError:
                return None
            last_words = InferenceComplete | InferenceError | MachineLost
            if isinstance(item, last_words) and item.request_id == attempt.assigned.job_id:
                return item if isinstance(item, InferenceComplete) else None

    async def _settle(self, attempt: Attempt, complete: InferenceComplete) -> Finished:
        claimed = complete.usage
        job = SettleJob(
            request_id=self.request_id,
            account_id=self._account_id,
            job_id=attempt.assigned.job_id,
            claimed_prompt_tokens=claimed.prompt_tokens,
            claimed_completion_tokens=claimed.completion_tokens,
            completion_bound=attempt.delivered.completion_bound(),
            claimed_units=claimed.units,
            units_bound=attempt.delivered.units,
            claimed_cached_tokens=claimed.cached_tokens,
            failures=tuple(self._failures),
        )
        settled = await self._ending.end(job)
        usage, cost = claimed.within(claimed.prompt_tokens, claimed.completion_tokens, claimed.units), None
        if isinstance(settled, RequestSettled):
            usage = claimed.within(settled.prompt_tokens, settled.completion_tokens, settled.units)
            cost = settled.cost
        elif settled is not None:
            log.error("request %s was answered, but had been released before", self.request_id)
        self.tokens_used = usage.prompt_tokens + usage.completion_tokens
        return Finished(usage, complete.response_hash, complete.se_signature, cost)

    async def _release(self, reason: str) -> None:
        await self._ending.end(
            ReleaseJob(
                request_id=self.request_id,
                account_id=self._account_id,
                reason=reason,
                failures=tuple(self._failures),
            )
        )

    # --- beside --------------------------------------------------------------------------------------------------

    def _do_beside(self, work: Coroutine[None, None, None]) -> None:
        """Do what the course of the request does not wait for."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _leave_nothing_behind(self) -> None:
        """Undo the searches that got no answer, or one that nobody read. Only after the request's end is recorded: a
        scheduler that comes later finds it ended, and one that came just before has left a claim that can be seen now.
        """
        if self._unanswered:
            await self._ending.leave_queue()
        unread = {assigned.attempt for assigned in self._inbox.unread_assignments()}
        for number in self._unanswered | unread:
            await self._ending.give_slot_back(number)
        if self._beside:
            await asyncio.gather(*self._beside, return_exceptions=True)


def _overtaken(job_id: str) -> JobFailure:
    """What becomes of an attempt that another one was faster than. It is no fault, and it is never paid."""
    return JobFailure(job_id, "overtaken", 499)


def _now() -> float:
    return asyncio.get_running_loop().time()
