"""Schedulers that are broken on purpose. The simulation has to find each of them, or it proves nothing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest

from adapters.scheduler import waking
from adapters.scheduler.fleet import SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from adapters.scheduler.scheduler import Scheduler
from api.consumer.attempt import Attempt
from api.consumer.inference import Inference
from api.providers import session as provider_session
from domain import ledger
from domain.dispatch import DispatchJob, ReleaseJob
from domain.eventsourced import Aggregate
from domain.ledger import Settle
from domain.protocol import InferenceComplete
from domain.requests import InferenceRequest
from domain.routing import Candidate, Policy, Snapshot, Vacancy
from domain.routing.explain import OF_OTHERS
from tests.simulation.checks import OVERTAKEN
from tests.simulation.tables import Row, Tables, Waiter

Breakage = Callable[[pytest.MonkeyPatch], None]


def claims_without_looking(patch: pytest.MonkeyPatch) -> None:
    """Two schedulers that chose the same last slot both get it: a double claim."""
    claim = Tables._claim_slot

    def always(self: Tables, wanted: Any) -> Iterable[Row]:
        machine = self.fleet.get(wanted["session_id"])
        if machine is None:
            return ()
        capacity, machine.capacity = machine.capacity, machine.busy + 1
        try:
            return claim(self, wanted)
        finally:
            machine.capacity = capacity

    patch.setattr(Tables, "_claim_slot", always)


def assigns_without_a_slot(patch: pytest.MonkeyPatch) -> None:
    """A scheduler does not read whether its claim was granted."""
    claim = SchedulerFleet.claim

    def granted(self: SchedulerFleet, job: DispatchJob, session_id: str, **how: Any) -> bool:
        claim(self, job, session_id, **how)
        return True

    patch.setattr(SchedulerFleet, "claim", granted)


def never_gives_a_slot_back(patch: pytest.MonkeyPatch) -> None:
    """A gateway forgets to release: a lost slot."""

    async def forget(self: GatewayFleet, request_id: UUID, attempt: int) -> list[DispatchJob]:
        return []

    patch.setattr(GatewayFleet, "release", forget)


def gives_a_slot_back_twice(patch: pytest.MonkeyPatch) -> None:
    """A counter is moved by a release that released nothing."""
    release = Tables._release_claims

    def again(self: Tables, wanted: Any) -> Iterable[Row]:
        claim = self.claims.get((wanted["request_ids"][0], wanted["attempts"][0]))
        released = release(self, wanted)
        machine = self.fleet.get(claim.session_id) if claim else None
        if machine is not None and machine.busy:
            machine.busy -= 1
        return released

    patch.setattr(Tables, "_release_claims", again)


def settles_what_has_ended(patch: pytest.MonkeyPatch) -> None:
    """A settlement that is repeated does not find the first one."""
    decide = Settle.decide

    def again(self: Settle, unit: Any) -> Any:
        unit.get(InferenceRequest, str(self.request_id)).end = None
        return decide(self, unit)

    patch.setattr(Settle, "decide", again)
    patch.setattr(Aggregate, "check", lambda self: None)


def asks_the_machine_that_failed_again(patch: pytest.MonkeyPatch) -> None:
    """A second attempt excludes nobody."""
    note = Inference._note

    def note_only(self: Inference, *failed: Any) -> Any:
        noted = note(self, *failed)
        self._excluded.clear()
        return noted

    patch.setattr(Inference, "_note", note_only)


def leaves_what_dead_gateways_held(patch: pytest.MonkeyPatch) -> None:
    """The sweeper does not end the requests of a gateway that is gone: a leaked hold."""
    release = Scheduler.release

    def keep(self: Scheduler, job: ReleaseJob) -> None:
        if job.reason != "expired":
            release(self, job)

    patch.setattr(Scheduler, "release", keep)


def wakes_nobody(patch: pytest.MonkeyPatch) -> None:
    """A slot comes free and whoever waits for it is not told, not even by the sweeper."""
    patch.setattr(Tables, "_wake", lambda self, waiters: [])


def wakes_whoever_is_first(patch: pytest.MonkeyPatch) -> None:
    """A slot wakes the first in the queue, whether it can serve that one or not."""

    def first(waiting: Sequence[Any], vacancies: Sequence[Vacancy], policy: Policy, *, now: float) -> list[Any]:
        return list(waiting)[: sum(one.slots for one in vacancies)]

    patch.setattr(waking, "whom_to_wake", first)


def lends_what_is_somebody_s_own(patch: pytest.MonkeyPatch) -> None:
    """A private machine and one below the floor of trust are given to everybody."""
    stand = provider_session.standing_of

    def open_to_all(candidate: Candidate, policy: Policy, **how: Any) -> Any:
        standing = stand(candidate, policy, **how)
        reasons = tuple(one for one in standing.reasons if one not in OF_OTHERS)
        return msgspec.structs.replace(standing, reasons=reasons)

    patch.setattr(provider_session, "standing_of", open_to_all)
    patch.setattr(Snapshot, "is_own", lambda self, constraints: True)


def serves_the_rich_first(patch: pytest.MonkeyPatch) -> None:
    """The queue goes by the account with the most requests in it, so the others starve."""
    asleep = Tables._asleep

    def rich_first(self: Tables, wanted: Any) -> list[Waiter]:
        shares: dict[str, int] = {}
        for one in self.waiters.values():
            shares[one.account_id] = shares.get(one.account_id, 0) + 1
        turns = {key: one.turn for key, one in self.waiters.items()}
        for one in self.waiters.values():
            one.turn = -1_000 * shares[one.account_id] - int(one.enqueued_at % 1_000)
        try:
            return asleep(self, wanted)
        finally:
            for key, turn in turns.items():
                self.waiters[key].turn = turn

    patch.setattr(Tables, "_asleep", rich_first)


def lets_machines_work_for_nobody(patch: pytest.MonkeyPatch) -> None:
    """A gateway never tells a machine to stop, though the slot is given away."""

    async def say_nothing(self: Attempt) -> None:
        pass

    patch.setattr(Attempt, "cancel", say_nothing)


def dispatches_what_has_ended(patch: pytest.MonkeyPatch) -> None:
    """An attempt is recorded for a request that is over."""
    decide = ledger.Dispatch.decide

    def anyway(self: ledger.Dispatch, unit: Any) -> bool:
        request = unit.get(InferenceRequest, str(self.request_id))
        end, request.end = request.end, None
        try:
            return decide(self, unit)
        finally:
            request.end = end

    patch.setattr(ledger.Dispatch, "decide", anyway)


def keeps_a_slot_until_the_end_is_read(patch: pytest.MonkeyPatch) -> None:
    """A machine that is done is not free before its consumer has read the last line."""
    let_go, leave_nothing = Inference._let_go, Inference._leave_nothing_behind
    read: defaultdict[UUID, asyncio.Event] = defaultdict(asyncio.Event)

    async def later(self: Inference, attempt: Attempt, at_work: bool) -> None:
        if not at_work:
            await read[self.request_id].wait()
        await let_go(self, attempt, at_work)

    async def over(self: Inference) -> None:
        read[self.request_id].set()
        await leave_nothing(self)

    patch.setattr(Inference, "_let_go", later)
    patch.setattr(Inference, "_leave_nothing_behind", over)


def hedges_again_and_again(patch: pytest.MonkeyPatch) -> None:
    """A gateway forgets that a request had its second chance."""
    hedge = Inference._hedge

    def forget(self: Inference) -> None:
        hedge(self)
        self._hedged = None

    patch.setattr(Inference, "_hedge", forget)


def pays_whoever_lost_the_race(patch: pytest.MonkeyPatch) -> None:
    """A settlement names the machine that was overtaken."""
    settle = Inference._settle

    async def of_the_loser(self: Inference, attempt: Attempt, complete: InferenceComplete) -> Any:
        for failure in self._failures:
            if failure.reason == OVERTAKEN:
                attempt.assigned = msgspec.structs.replace(attempt.assigned, job_id=failure.job_id)
        return await settle(self, attempt, complete)

    patch.setattr(Inference, "_settle", of_the_loser)


class Broken(NamedTuple):
    """A broken scheduler, the faults that bring it out (none: any, or calm), and the seeds within which it is found: of
    a market ``in_a_crowd``, where it has to be."""

    breakage: Breakage
    faults: tuple[str, ...]
    seeds_max: int
    in_a_crowd: bool = False


ALL = (
    Broken(claims_without_looking, (), 10, in_a_crowd=True),
    Broken(assigns_without_a_slot, (), 20, in_a_crowd=True),
    Broken(never_gives_a_slot_back, (), 10),
    Broken(gives_a_slot_back_twice, (), 10),
    Broken(settles_what_has_ended, ("database_is_cut_off",), 20, in_a_crowd=True),
    Broken(asks_the_machine_that_failed_again, ("machine_fails",), 20),
    Broken(leaves_what_dead_gateways_held, ("gateway_is_killed",), 20),
    Broken(wakes_nobody, (), 10),
    Broken(wakes_whoever_is_first, (), 40),
    Broken(lends_what_is_somebody_s_own, (), 10),
    Broken(serves_the_rich_first, (), 40),
    Broken(lets_machines_work_for_nobody, ("machine_says_nothing",), 20),
    Broken(dispatches_what_has_ended, ("broker_misbehaves",), 20, in_a_crowd=True),
    Broken(keeps_a_slot_until_the_end_is_read, (), 40, in_a_crowd=True),
    Broken(hedges_again_and_again, (), 10),
    Broken(pays_whoever_lost_the_race, (), 20),
)
