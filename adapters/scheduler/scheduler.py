"""The scheduler's work, called by its actors: find a machine, end requests, sweep up.

Everything here is synchronous, idempotent and bounded in time. Nothing waits for a slot in a worker thread: a request
that finds none is parked as a row, and comes back as a new message when capacity appears.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from psycopg_pool import ConnectionPool

from adapters.postgres import sql
from adapters.postgres.writer import LedgerWriter
from adapters.relay.mailbox import GatewayUnreachable, Mailbox
from adapters.scheduler.decision import Decision
from adapters.scheduler.fleet import AttemptHasSlot, Place, SchedulerFleet
from domain import ledger
from domain.dispatch import Assigned, DispatchJob, Refused, ReleaseJob, SettleJob, Waiting
from domain.errors import UnknownRequest
from domain.eventsourced import Actor
from domain.requests import job_id_of
from domain.routing import (
    Assessment,
    Candidate,
    Choice,
    Policy,
    breaker_state,
    describe,
    expected_wait_seconds,
)

log = logging.getLogger(__name__)

CLAIM_TRIES_MAX = 16

REUSE_SECONDS = 0.05
"""For how long a scheduler uses what the index of machines said again. Machines report every five seconds, so it is
hardly older for that."""

SWEEP_REQUESTS_MAX = 1_000


class Scheduler:
    def __init__(
        self,
        *,
        writer: LedgerWriter,
        pool: ConnectionPool[Any],
        mailbox: Mailbox,
        policy: Policy,
        resend: Callable[[DispatchJob], None],
        fee_percent: int,
        queue_depth_max: int,
        claim_seconds: float,
        lease_grace_seconds: float,
        random: Random,
        relayed: bool = False,
    ) -> None:
        self.fleet = SchedulerFleet(pool)
        self._writer = writer
        self._pool = pool
        self._mailbox = mailbox
        self._resend = resend
        self._fee_percent = fee_percent
        self._queue_depth_max = queue_depth_max
        self._claim_seconds = claim_seconds
        self._lease_grace_seconds = lease_grace_seconds
        self._policy = policy
        self._decision = Decision(self.fleet, policy, random, relayed=relayed, reuse_seconds=REUSE_SECONDS)

    # --- dispatch ------------------------------------------------------------------------------------------------

    def dispatch(self, job: DispatchJob) -> None:
        """Give an attempt to the best machine and tell its gateway; else let it wait, or refuse it."""
        seconds_left = job.deadline - time.time()
        if seconds_left <= 0:
            log.info("attempt %d of %s came too late, or from another clock", job.attempt, job.request_id)
            return
        self.fleet.note_demand(job.model)
        try:
            has_to_wait = job.background and self.fleet.anybody_waits(job.model)
            has_no_room = job.hedge and not self.fleet.has_room_to_spare(job.model)
            claimed = self._claimed_before(job) if has_to_wait or has_no_room else self._claim(job)
            if claimed is None and job.may_wait:
                claimed = self._park(job, seconds_left)
            elif claimed is None:
                self._mailbox.deliver(job.reply_to, self._refusal(job, "no_machine"))
            if claimed is not None:
                self._assign(job, claimed)
        except (GatewayUnreachable, UnknownRequest) as error:
            # The prompt is with the gateway: without it a request cannot go on, and the sweeper ends what is open.
            log.info("attempt %d of %s is dropped: %s", job.attempt, job.request_id, type(error).__name__)
            self.fleet.leave_queue(job.request_id)
            self._give_back(job)

    def _claim(self, job: DispatchJob) -> Candidate | None:
        demand, full = job.demand_at(time.time()), set[str]()
        for _ in range(CLAIM_TRIES_MAX):
            choice = self._decision.choose(demand, job.reply_to, passed_over=full)
            if choice is None:
                return self._claimed_before(job)
            session_id = choice.candidate.snapshot.session_id
            try:
                alone = job.background or self._is_probe(choice)
                if self.fleet.claim(job, session_id, seconds=self._claim_seconds, alone=alone):
                    self._decision.count_claim(session_id, job.model, job.output_tokens)
                    self._explain(job, choice)
                    return choice.candidate
            except AttemptHasSlot:
                before = self._claimed_before(job)
                if before is not None:
                    return before
                self._give_back(job)  # what it claimed cannot serve it any more
                continue
            full.add(session_id)
        return None

    def _is_probe(self, choice: Choice) -> bool:
        """Whether the machine is on trial. Another scheduler may just have sent it a request too; one is enough."""
        return breaker_state(choice.candidate.health, now=time.time(), policy=self._policy) == "half_open"

    def _explain(self, job: DispatchJob, choice: Choice) -> None:
        if log.isEnabledFor(logging.DEBUG):
            ties, why = choice.near_ties, describe(Assessment(choice.candidate, (), choice.cost))
            log.debug("attempt %d of %s: %s; %d near ties", job.attempt, job.request_id, why, ties)

    def _claimed_before(self, job: DispatchJob) -> Candidate | None:
        """A message that came twice finds the machine that its first run claimed, and waits for no other."""
        session_id = self.fleet.claimed_session(job.request_id, job.attempt)
        if session_id is None:
            return None
        own_account = job.constraints.own_account
        found = next(
            iter(self.fleet.machines_for(job.model, None, own_account=own_account, session_id=session_id)), None
        )
        if found is not None:
            self.fleet.leave_queue(job.request_id)
        return found

    def _give_back(self, job: DispatchJob) -> None:
        """A slot that was claimed is not used; whoever waits for it may have it."""
        freed = self.fleet.release(job.request_id, job.attempt)
        for waiter in self.fleet.wake_for(freed, self._policy, self._decision.reachable_from(job.reply_to)):
            self._resend(waiter)

    def _park(self, job: DispatchJob, seconds_left: float) -> Candidate | None:
        place = self.fleet.park(job, seconds=seconds_left, depth_max=self._queue_depth_max)
        if place is None:
            self._refuse_for_want_of_room(job)
            return None
        if place.shed is not None:
            with suppress(GatewayUnreachable):  # then its prompt is gone too, and the sweeper ends it
                self._refuse_for_want_of_room(place.shed)
        # A slot may have come free between looking and parking; its wake would have found nobody waiting.
        claimed = self._claim(job)
        if claimed is None:
            self._tell_the_wait(job, place, seconds_left)
        return claimed

    def _refuse_for_want_of_room(self, job: DispatchJob) -> None:
        position = self._queue_depth_max + 1
        supply = self._decision.supply(job.demand_at(time.time()), job.reply_to)
        wait_seconds = expected_wait_seconds(position, supply.slots, supply.slot_seconds)
        refusal = self._refusal(job, "queue_full", position=position, wait_seconds=wait_seconds)
        self._mailbox.deliver(job.reply_to, refusal)

    def _tell_the_wait(self, job: DispatchJob, place: Place, seconds_left: float) -> None:
        """What to expect; a request that has only just come is told at once when its wait is hopeless."""
        demand = job.demand_at(time.time())
        if place.taken_now and self._decision.is_too_large(demand, job.reply_to):
            self.fleet.leave_queue(job.request_id)
            self._mailbox.deliver(job.reply_to, self._refusal(job, "too_large"))
            return
        supply = self._decision.supply(demand, job.reply_to)
        wait_seconds = expected_wait_seconds(place.position, supply.slots, supply.slot_seconds)
        if place.taken_now and wait_seconds is not None and wait_seconds > seconds_left:
            self.fleet.leave_queue(job.request_id)
            hopeless = self._refusal(job, "hopeless", position=place.position, wait_seconds=wait_seconds)
            self._mailbox.deliver(job.reply_to, hopeless)
            return
        notice = Waiting(
            request_id=job.request_id,
            attempt=job.attempt,
            machines=supply.machines,
            position=place.position,
            wait_seconds=wait_seconds,
        )
        self._mailbox.deliver(job.reply_to, notice)

    def _assign(self, job: DispatchJob, chosen: Candidate) -> None:
        machine = chosen.snapshot
        recorded = self._writer.execute(
            ledger.Dispatch(
                actor=Actor("system", "scheduler"),
                correlation_id=str(job.request_id),
                request_id=job.request_id,
                attempt=job.attempt,
                provider_id=machine.session_id,
                machine_id=machine.machine_id,
                provider_key=machine.provider_key,
                provider_account_id=machine.account_id,
                failures=job.failures,
            )
        )
        if not recorded:
            self._give_back(job)
            return
        self._mailbox.deliver(
            job.reply_to,
            Assigned(
                request_id=job.request_id,
                attempt=job.attempt,
                job_id=str(job_id_of(job.request_id, job.attempt)),
                machine=machine,
            ),
        )

    @staticmethod
    def _refusal(job: DispatchJob, reason: str, *, position: int = 1, wait_seconds: float | None = None) -> Refused:
        return Refused(
            request_id=job.request_id,
            attempt=job.attempt,
            reason=reason,
            position=position,
            wait_seconds=wait_seconds,
        )

    # --- ends ----------------------------------------------------------------------------------------------------

    def settle(self, job: SettleJob) -> None:
        self._writer.execute(settlement_of(job, self._fee_percent))

    def release(self, job: ReleaseJob) -> None:
        try:
            self._writer.execute(release_of(job))
        except UnknownRequest:
            log.info("request %s was never admitted, so there is nothing to release", job.request_id)
        self.fleet.leave_queue(job.request_id)

    # --- sweeping ------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """End what a dead gateway or a passed deadline left open; returns how many requests that were."""
        with self._pool.connection() as connection:
            abandoned = connection.execute(
                sql.ABANDONED_REQUESTS, (self._lease_grace_seconds, SWEEP_REQUESTS_MAX)
            ).fetchall()
            connection.execute(sql.DROP_ENDED_GATEWAYS)
        for request_id, account_id in abandoned:
            log.warning("request %s was left open by its gateway and is released", request_id)
            self.release(ReleaseJob(request_id=request_id, account_id=account_id, reason="expired"))
        for job in self.fleet.sweep():
            self._resend(job)
        return len(abandoned)


def settlement_of(job: SettleJob, fee_percent: int) -> ledger.Settle:
    """The one way from a completion to events, for the gateway's direct run and for the actor that repeats it."""
    return ledger.Settle(
        actor=Actor("system", "settlement"),
        correlation_id=str(job.request_id),
        request_id=job.request_id,
        account_id=job.account_id,
        job_id=job.job_id,
        claimed_prompt_tokens=job.claimed_prompt_tokens,
        claimed_completion_tokens=job.claimed_completion_tokens,
        claimed_units=job.claimed_units,
        units_bound=job.units_bound,
        claimed_cached_tokens=job.claimed_cached_tokens,
        completion_bound=job.completion_bound,
        failures=job.failures,
        fee_percent=fee_percent,
    )


def release_of(job: ReleaseJob) -> ledger.Release:
    return ledger.Release(
        actor=Actor("system", "settlement"),
        correlation_id=str(job.request_id),
        request_id=job.request_id,
        account_id=job.account_id,
        reason=job.reason,
        failures=job.failures,
    )
