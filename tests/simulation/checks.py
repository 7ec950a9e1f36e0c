"""What must hold after every step, whatever breaks, and what must hold once nothing breaks any more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from adapters.scheduler.waking import health_in
from api.consumer.inference import ATTEMPTS_MAX
from domain.dispatch import DispatchJob
from domain.eventsourced import DomainEvent, Written
from domain.invariants import LogCheck, Logged
from domain.requests import JobDispatched, JobFailed, RequestReleased, RequestSettled
from domain.routing import breaker_state
from domain.wallet import EarningCredited, HoldCaptured
from tests.simulation import rules
from tests.simulation.consumer import PATIENT_SECONDS, Told

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.market import Market
    from tests.simulation.tables import Machine as FleetRow
    from tests.simulation.tables import Waiter

K = TypeVar("K")

STARVED_SECONDS_CALM = 2
STARVED_SECONDS = 14
"""With a slot before it that is free for it, no request waits longer: it is woken when nothing breaks, else a lost wake
is noticed after 5 s, by a sweep every 2 s."""

SLOT_SECONDS_CALM = 3
SLOT_SECONDS = 20
"""A request that has ended leaves its slot after so long: at once when nothing breaks, else by a sweep."""

WORK_SECONDS = 3
"""A machine works on after the end of a request for so long, until it is told or loses its connection."""

CANCELLED_SECONDS = 1.0
"""After so long a cancellation has arrived."""

OVERTAKERS_MAX = 8
GATEWAY_FAILURES = {"send_failed", "machine_lost"}
"""How an attempt fails whose machine is on another gateway, when that one does not answer."""

OVERTAKEN = "overtaken"
"""Why an attempt failed that lost a race."""


class Broken(AssertionError):
    """A rule of the market does not hold."""


class _Slot(NamedTuple):
    """A slot of a machine for a model, and the machine's row in the fleet table."""

    model: str
    machine: Machine
    row: FleetRow


class Checks:
    """``watch`` is called once a second, everything else where it happens."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._broken: list[str] = []
        self._log = LogCheck(lambda violation: self.report(str(violation)))
        self._seen_changes = -1
        self._captured = self._shared = self._earned = 0
        self.ends: dict[str, RequestSettled | RequestReleased] = {}
        self._ended: Counter[str] = Counter()
        self._starving: Counter[UUID] = Counter()
        self._ended_for: Counter[UUID] = Counter()
        self._for_nobody: Counter[str] = Counter()
        self._attempts: dict[str, tuple[UUID, int]] = {}
        self._asked: set[tuple[UUID, str]] = set()
        self._relayed: dict[str, tuple[UUID, str]] = {}
        self._arrived: Counter[UUID] = Counter()
        self._owners: dict[UUID, str] = {}
        """Requests with the account that asked for its own machines, empty where nobody did."""
        self.hedges: Counter[UUID] = Counter()
        self._losers: set[str] = set()
        self._paid: set[str] = set()
        self._over: set[UUID] = set()
        self._claims_seen: set[tuple[UUID, int]] = set()
        self._overtaken: Counter[tuple[UUID, str]] = Counter()
        self.told: list[Told] = []

    def report(self, what: str) -> None:
        self._broken.append(what)

    def after_step(self) -> None:
        """Raises Broken."""
        if self._market.tables.changes != self._seen_changes:
            self._seen_changes = self._market.tables.changes
            self._check_slots()
            self._check_turns()
        if self._broken:
            raise Broken("; ".join(self._broken[:3]))

    # --- money and ends ----------------------------------------------------------------------------------------------

    def committed(self, written: Written) -> None:
        for position, event in enumerate(written.events, written.first_position):
            self._log.read(Logged(position, written.recorded_at, event))
            self._follow(event)
        self._log.close()
        if self._paid & self._losers:
            self.report(f"jobs {self._paid & self._losers} lost a race and are paid")
        if self._captured != self._earned + self._shared:
            self.report(f"{self._captured} was captured and {self._earned + self._shared} arrived")

    def _follow(self, event: DomainEvent) -> None:
        match event:
            case HoldCaptured():
                self._captured += event.captured
            case EarningCredited():
                self._earned += event.amount
            case JobDispatched():
                if event.job_id in self._attempts:
                    self.report(f"attempt {event.job_id} is dispatched twice")
                self._attempts[event.job_id] = UUID(event.correlation_id), event.attempt
                asked = event.originator_id, event.provider_id
                if asked in self._asked:
                    self.report(f"a machine that failed request {event.originator_id} is asked again")
                self._asked.add(asked)
                if self._is_relayed(event):
                    self._relayed[event.job_id] = asked
                if event.originator_id in self._over:
                    self.report(f"request {event.originator_id} has ended and is dispatched")
            case JobFailed() if event.reason == OVERTAKEN:
                self._losers.add(event.job_id)
            case JobFailed() if event.reason in GATEWAY_FAILURES and event.job_id in self._relayed:
                self._asked.discard(self._relayed[event.job_id])  # nobody knows that it was the machine
            case RequestSettled() | RequestReleased():
                self._ended[event.request_id] += 1
                if self._ended[event.request_id] > 1:
                    self.report(f"request {event.request_id} ends twice")
                self.ends[event.request_id] = event
                if isinstance(event, RequestSettled):
                    self._paid.add(event.job_id)
                self._over.add(event.originator_id)
                if isinstance(event, RequestSettled) and not event.free:
                    unclaimed = 0 if event.provider_account_id else event.provider_amount
                    self._shared += event.platform_amount + unclaimed
            case _:
                pass

    def _is_relayed(self, event: JobDispatched) -> bool:
        """Whether the machine is on another gateway than the request."""
        tables = self._market.tables
        machine = tables.fleet.get(event.provider_id)
        admitted = tables.open_requests.get(UUID(event.correlation_id))
        return machine is not None and admitted is not None and machine.gateway_id != admitted.gateway_id

    # --- slots -------------------------------------------------------------------------------------------------------

    def _check_slots(self) -> None:
        tables = self._market.tables
        claimed: Counter[str] = Counter()
        of_model: Counter[tuple[str, str]] = Counter()
        tokens: Counter[tuple[str, str]] = Counter()
        for claim in tables.claims.values():
            claimed[claim.session_id] += 1
            of_model[claim.session_id, claim.model] += 1
            tokens[claim.session_id, claim.model] += claim.output_tokens
        for machine in tables.fleet.values():
            if machine.busy != claimed[machine.session_id]:
                self.report(f"{machine.machine_id[:8]} counts {machine.busy} of {claimed[machine.session_id]} claims")
            if machine.busy > machine.capacity:
                self.report(f"{machine.machine_id[:8]} has {machine.busy} requests in {machine.capacity} slots")
        for key, offer in tables.offers.items():
            if key[0] in tables.fleet and (offer.requests_model, offer.output_tokens_model) != (
                of_model[key],
                tokens[key],
            ):
                self.report(f"{key} counts {offer.requests_model} of {of_model[key]} claims")

    def _check_turns(self) -> None:
        """Count for each waiting request how many of one other account came later and got first what it could have."""
        tables = self._market.tables
        new = tables.claims.keys() - self._claims_seen
        if not new:
            return
        self._claims_seen |= new
        machines = {self._market.machine_id_of(machine): machine for machine in self._market.machines}
        for key in sorted(new):
            claim, request_id = tables.claims[key], key[0]
            admitted = tables.open_requests.get(request_id)
            if admitted is None or key[1] > 1:
                continue
            machine = tables.fleet.get(claim.session_id)
            taken = [_Slot(claim.model, machines[machine.machine_id], machine)] if machine else []
            now = self._market.unix_now()
            for waiter in tables.waiters.values():
                if (
                    waiter.woken_at is None
                    and waiter.enqueued_at < admitted.admitted_at
                    and waiter.account_id != claim.account_id
                    and self._is_free_for(waiter, taken, now)
                ):
                    self._overtaken[waiter.request_id, claim.account_id] += 1
                    if self._overtaken[waiter.request_id, claim.account_id] > OVERTAKERS_MAX:
                        self.report(f"{waiter.request_id} is overtaken again and again by one account")

    def asked_for(self, job: DispatchJob) -> None:
        """A gateway asks for a machine."""
        self._owners[job.request_id] = job.constraints.own_account and job.account_id
        self.hedges[job.request_id] += job.hedge
        if self.hedges[job.request_id] > 1:
            self.report(f"request {job.request_id} is hedged {self.hedges[job.request_id]} times")

    def job_arrived(self, machine: Machine, job_id: str) -> None:
        """A machine got a job. Without a slot it may only have it while a cancellation is on its way."""
        request_id, _ = self._attempts[job_id]
        self._arrived[request_id] += 1
        if self._arrived[request_id] > ATTEMPTS_MAX:
            self.report(f"{self._arrived[request_id]} machines are sent request {request_id}")
        if not machine.is_for_all and machine.account_id != self._owners.get(request_id):
            self.report(f"{machine.name} serves request {request_id}, which is not its owner's")
        if not self._has_slot(job_id):
            asyncio.get_running_loop().call_later(
                CANCELLED_SECONDS, self._check_for_slot, machine, machine.running[job_id], job_id
            )

    def _has_slot(self, job_id: str) -> bool:
        return self._attempts[job_id] in self._market.tables.claims

    def _check_for_slot(self, machine: Machine, running: asyncio.Task[None], job_id: str) -> None:
        is_open = self._attempts[job_id][0] in self._market.tables.open_requests
        if not running.done() and is_open and self._market.slots_are_known and not self._has_slot(job_id):
            self.report(f"{machine.name} runs job {job_id} without a slot")

    # --- waiting -----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Look at what may only last for a while."""
        market, now = self._market, self._market.unix_now()
        if market.is_disturbed:
            self._starving.clear()
            self._ended_for.clear()
            self._for_nobody.clear()
            return
        free = self._free_slots(now)
        waiting = {
            one.request_id
            for one in market.tables.waiters.values()
            if one.deadline > now
            and one.request_id in market.tables.open_requests
            and self._is_free_for(one, free, now)
        }
        _count_on(self._starving, waiting)
        for request_id, seconds in self._starving.items():
            if seconds > (STARVED_SECONDS_CALM if market.is_calm else STARVED_SECONDS):
                self.report(f"request {request_id} waits before a free slot for {seconds} s")
        ended = {key[0] for key in market.tables.claims if key[0] not in market.tables.open_requests}
        _count_on(self._ended_for, ended)
        limit = SLOT_SECONDS_CALM if market.is_calm else SLOT_SECONDS
        for_nobody = {
            job_id
            for machine in market.machines
            for job_id in machine.running
            if self._attempts[job_id][0] not in market.tables.open_requests
        }
        _count_on(self._for_nobody, for_nobody)
        for job_id, seconds in self._for_nobody.items():
            if seconds > WORK_SECONDS:
                self.report(f"a machine works on job {job_id} for nobody, {seconds} s after its request has ended")
        for request_id, seconds in self._ended_for.items():
            if seconds > limit:
                self.report(f"request {request_id} has ended and still holds a slot after {seconds} s")

    @staticmethod
    def _is_free_for(waiter: Waiter, free: Iterable[_Slot], now: float) -> bool:
        wanted = msgspec.json.decode(waiter.message, type=DispatchJob).demand_at(now)
        asked = wanted.constraints
        return any(
            model == waiter.model
            and asked.only_account in ("", machine.account_id)
            and (machine.is_for_all or machine.account_id == asked.own_account != "")
            and wanted.excluded.isdisjoint({row.session_id, row.gateway_id})
            for model, machine, row in free
        )

    def _free_slots(self, now: float) -> list[_Slot]:
        tables = self._market.tables
        machines = {self._market.machine_id_of(machine): machine for machine in self._market.machines}
        found = []
        for offer in tables.offers.values():
            machine = tables.fleet.get(offer.session_id)
            if machine is None or not machine.routable or offer.busy >= offer.capacity or offer.put_aside_until > now:
                continue
            if offer.requests_model >= machines[machine.machine_id].models[offer.model]:
                continue
            fared = tables.health.get(machine.machine_id)
            if fared is None or breaker_state(health_in(fared.health), now=now, policy=rules.POLICY) == "closed":
                found.append(_Slot(offer.model, machines[machine.machine_id], machine))
        return found

    # --- the end -----------------------------------------------------------------------------------------------------

    def what_is_left(self) -> list[str]:
        """What has not healed yet."""
        tables = self._market.tables
        left = [f"request {request_id} is open" for request_id in tables.open_requests]
        left += [f"{account} has a hold" for account, wallet in self._log.wallets.items() if wallet.held]
        left += [f"{key[0]} has a slot" for key in tables.claims]
        left += [f"{key[0]} waits" for key, one in tables.waiters.items() if one.deadline > self._market.unix_now()]
        routable = {one.machine_id for one in tables.fleet.values() if one.routable}
        for machine in self._market.machines:
            if machine.is_for_all or machine.account_id:
                continue
            routable.add(self._market.machine_id_of(machine))  # whose owner nobody knows, and who serves nobody else
        for machine in self._market.machines:
            if self._market.machine_id_of(machine) not in routable:
                left.append(f"{machine.name} cannot be routed to")
        if self._log.open_requests:
            left.append("the log has open requests")
        return left

    def check_what_was_told(self) -> None:
        """Nobody pays for an error, and whoever got all has paid."""
        for told in self.told:
            end = self.ends.get(str(told.request_id))
            if told.error and told.status != 200 and isinstance(end, RequestSettled):
                self.report(f"{told.wish.name} was told {told.status} {told.error} and is charged")
            if told.error == "provider_error" and isinstance(end, RequestSettled):
                self.report(f"{told.wish.name} was told that nothing was charged, and is charged")
            if told.whole and not isinstance(end, RequestSettled) and not self._market.excuses:
                self.report(f"{told.wish.name} got a whole answer and did not pay")
            left = told.wish.patience < PATIENT_SECONDS or told.wish.reading
            if self._market.is_calm and not (told.whole or told.error or left):
                self.report(f"{told.wish.name} got neither an answer nor an error")
        if self._market.is_calm and (failed := [one for one in self.told if one.error in _INEXCUSABLE]):
            self.report(f"{failed[0].wish.name} was told {failed[0].error} though nothing broke")


_INEXCUSABLE = {"provider_error", "internal_error", "timeout"}


def _count_on(seconds: Counter[K], now: set[K]) -> None:
    for key in list(seconds):
        if key not in now:
            del seconds[key]
    seconds.update(now)
