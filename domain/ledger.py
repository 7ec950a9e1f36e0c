"""One command per business operation.

A command names the aggregates that it needs, decides on their latest state and records events. It has no clock, no
randomness and no I/O; whoever runs it passes a unit of work. Running a command again returns what the first run made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast
from uuid import UUID

import msgspec

from domain import journal, key_budgets
from domain.accounts import Account, AccountOpened
from domain.errors import Conflict, InsufficientFunds, UnknownRequest
from domain.eventsourced import Actor, Aggregate, DomainEvent, Ref, ref
from domain.journal import JournalEntry, JournalEntryPosted, Posting
from domain.key_budgets import KeyBudget, KeyLimit
from domain.machines import (
    MachineLinked,
    MachineRegistered,
    ProviderMachine,
    ProviderSessionClosed,
    ProviderSessionOpened,
)
from domain.money import percent_of
from domain.pricing import Quote
from domain.requests import (
    InferenceRequest,
    JobCompleted,
    JobDispatched,
    JobFailed,
    JobFailure,
    RequestAdmitted,
    RequestReleased,
    RequestSettled,
    UsageClaimClamped,
    job_id_of,
)
from domain.wallet import EarningCredited, HoldCaptured, HoldPlaced, HoldReleased, PromotionalCreditGranted, Wallet

R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A", bound=Aggregate)

SYSTEM = Actor("system", "")


class Unit(Protocol):
    """One command's unit of work over the ledger's current state."""

    @property
    def now(self) -> datetime: ...

    def get(self, kind: type[A], key: str) -> A:
        """The aggregate of that business key; blank when nothing was ever recorded for it."""
        ...

    def fresh(self, kind: type[A], key: str) -> A:
        """The same for a key that nothing can have been recorded for yet: it is not looked up."""
        ...

    def record(self, aggregate: Aggregate, event: type[DomainEvent], **payload: Any) -> None:
        """Append the aggregate's next event, and apply it."""
        ...


class Command(Protocol[R_co]):
    @property
    def actor(self) -> Actor: ...

    @property
    def correlation_id(self) -> str: ...

    def needs(self) -> Sequence[Ref]:
        """The aggregates to load before the ledger is locked."""
        ...

    def decide(self, unit: Unit) -> R_co: ...


class Operation(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True):
    """What every command carries: who asks, and what the events belong to."""

    actor: Actor = SYSTEM
    correlation_id: str = ""


class Used(NamedTuple):
    """What a request is charged for; ``units`` are of its quote's unit, ``cached_tokens`` a part of the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    units: int
    cached_tokens: int


class Balance(NamedTuple):
    balance_micro_usd: int
    withdrawable_micro_usd: int


def _post(unit: Unit, key: str, kind: str, postings: tuple[Posting, ...], reference: str) -> None:
    unit.record(
        unit.fresh(JournalEntry, key),
        JournalEntryPosted,
        entry_key=key,
        kind=kind,
        effective_at=unit.now,
        postings=postings,
        reference=reference,
        metadata={},
        reverses_entry_id=None,
    )


class OpenAccount(Operation[bool], frozen=True, kw_only=True):
    """Open an account. Returns whether this call did."""

    account_id: str
    kind: str = "user"

    def needs(self) -> Sequence[Ref]:
        return (ref(Account, self.account_id),)

    def decide(self, unit: Unit) -> bool:
        account = unit.get(Account, self.account_id)
        if account.exists:
            return False
        unit.record(account, AccountOpened, account_id=self.account_id, kind=self.kind)
        return True


class GrantCredit(Operation[Balance], frozen=True, kw_only=True):
    """Give promotional credit. ``reference`` is the operation's own id: the same one is never granted twice."""

    account_id: str
    amount_micro_usd: int
    reference: str
    source: str = "admin_credit"

    @property
    def entry_key(self) -> str:
        return f"credit:{self.reference}"

    def needs(self) -> Sequence[Ref]:
        return ref(Wallet, self.account_id), ref(JournalEntry, self.entry_key)

    def decide(self, unit: Unit) -> Balance:
        wallet = unit.get(Wallet, self.account_id)
        if not unit.get(JournalEntry, self.entry_key).exists:
            if self.amount_micro_usd <= 0:
                raise Conflict("a credit is more than nothing")
            unit.record(
                wallet,
                PromotionalCreditGranted,
                account_id=self.account_id,
                amount=self.amount_micro_usd,
                source=self.source,
                reference=self.reference,
            )
            postings = journal.promotional_credit(self.account_id, self.amount_micro_usd)
            _post(unit, self.entry_key, self.source, postings, self.reference)
        return Balance(wallet.balance, wallet.withdrawable)


class Admit(Operation[RequestAdmitted], frozen=True, kw_only=True):
    """Hold the most that a request can cost, before any work is done for it.

    With ``self_route`` only machines of the same account may serve it, which costs nothing, so nothing is held.

    Raises:
        InsufficientFunds: the balance is below the hold, or the key's own limit is. Nothing is recorded.
    """

    request_id: UUID
    account_id: str
    key_id: str
    key_limit: KeyLimit | None = None
    gateway_id: str
    model: str
    prompt_estimate: int
    prompt_bound: int
    output_bound: int
    units_bound: int = 0
    quote: Quote
    expires_at: datetime
    self_route: bool = False

    @property
    def reserved_micro_usd(self) -> int:
        if self.self_route:
            return 0
        return self.quote.charge_micro_usd(self.prompt_bound, self.output_bound, self.units_bound)

    def needs(self) -> Sequence[Ref]:
        request, wallet = ref(InferenceRequest, str(self.request_id)), ref(Wallet, self.account_id)
        return request, wallet, ref(KeyBudget, self.key_id)  # its end needs the budget, so that it is in memory then

    def decide(self, unit: Unit) -> RequestAdmitted:
        key = str(self.request_id)
        request = unit.get(InferenceRequest, key)
        if request.admission is not None:
            return request.admission
        wallet = unit.get(Wallet, self.account_id)
        reserved = self.reserved_micro_usd
        if wallet.balance < reserved:
            raise InsufficientFunds
        if not self.self_route:
            if self.key_limit is not None:
                key_budgets.hold(unit, self.key_id, key, reserved, self.key_limit)
            unit.record(
                wallet,
                HoldPlaced,
                account_id=self.account_id,
                hold_id=key,
                amount=reserved,
                expires_at=self.expires_at,
                purpose="inference",
            )
        unit.record(
            request,
            RequestAdmitted,
            request_id=key,
            account_id=self.account_id,
            key_id=self.key_id,
            gateway_id=self.gateway_id,
            model=self.model,
            prompt_estimate=self.prompt_estimate,
            prompt_bound=self.prompt_bound,
            output_bound=self.output_bound,
            units_bound=self.units_bound,
            reserved=reserved,
            quote=self.quote,
            self_route=self.self_route,
            expires_at=self.expires_at,
        )
        return cast("RequestAdmitted", request.admission)


class Dispatch(Operation[bool], frozen=True, kw_only=True):
    """Record that an attempt goes to a machine, and why the attempts before it failed.

    Returns False when the request has already ended: then the attempt must not be sent.
    """

    request_id: UUID
    attempt: int
    provider_id: str
    machine_id: str
    provider_key: str
    provider_account_id: str
    failures: tuple[JobFailure, ...] = ()

    def needs(self) -> Sequence[Ref]:
        return (ref(InferenceRequest, str(self.request_id)),)

    def decide(self, unit: Unit) -> bool:
        request = unit.get(InferenceRequest, str(self.request_id))
        if request.admission is None:
            raise UnknownRequest
        if request.end is not None:
            return False
        if request.admission.self_route and self.provider_account_id != request.admission.account_id:
            raise Conflict("a request that is restricted to one's own machines goes to no other")
        _record_failures(unit, request, self.failures)
        job_id = str(job_id_of(self.request_id, self.attempt))
        if job_id not in request.jobs:
            unit.record(
                request,
                JobDispatched,
                job_id=job_id,
                attempt=self.attempt,
                provider_id=self.provider_id,
                machine_id=self.machine_id,
                provider_key=self.provider_key,
                provider_account_id=self.provider_account_id,
                quote=request.admission.quote,
            )
        return request.jobs[job_id].provider_id == self.provider_id


class Settle(Operation[RequestSettled | RequestReleased], frozen=True, kw_only=True):
    """Turn a completion into money: capture the cost, return the rest of the hold, pay the provider.

    The machine's counts are claims: they are bounded by the admission and by ``completion_bound`` and ``units_bound``,
    which follow from what was relayed. What it says of its memory has no other bound than the prompt, because it can
    only lower the price. ``failures`` are the other attempts. Returns the request's end, which is the
    first one whatever comes later.
    """

    request_id: UUID
    account_id: str
    job_id: str
    claimed_prompt_tokens: int
    claimed_completion_tokens: int
    completion_bound: int
    claimed_units: int = 0
    units_bound: int = 0
    claimed_cached_tokens: int = 0
    failures: tuple[JobFailure, ...] = ()
    fee_percent: int = 0

    def needs(self) -> Sequence[Ref]:
        return ref(InferenceRequest, str(self.request_id)), ref(Wallet, self.account_id)

    def decide(self, unit: Unit) -> RequestSettled | RequestReleased:
        request = unit.get(InferenceRequest, str(self.request_id))
        if request.end is not None:
            return request.end
        admission, job = request.admission, request.jobs.get(self.job_id)
        if admission is None or admission.account_id != self.account_id or job is None or self.job_id in request.failed:
            raise UnknownRequest("There is no such attempt, or it was given up; its late result changes nothing.")
        if min(*self._claimed, self.completion_bound, self.units_bound) < 0:
            raise Conflict("what is counted is never below zero")
        if any(failure.job_id == self.job_id for failure in self.failures):
            raise Conflict("an attempt that failed is not paid")
        # Looked up before anything is recorded, because an aggregate that is not loaded yet begins the command again.
        payee = unit.get(Wallet, job.provider_account_id) if job.provider_account_id else None
        budget = unit.get(KeyBudget, admission.key_id)
        _record_failures(unit, request, self.failures)
        completed = self._record_completion(unit, request, admission, job)
        settled = self._record_settlement(unit, request, admission, job, completed)
        if not admission.self_route:
            self._move_money(unit, settled, payee)
            key_budgets.capture(unit, budget, settled.request_id, settled.cost)
        return settled

    @property
    def _claimed(self) -> Used:
        return Used(
            self.claimed_prompt_tokens,
            self.claimed_completion_tokens,
            self.claimed_units,
            self.claimed_cached_tokens,
        )

    def _record_completion(
        self, unit: Unit, request: InferenceRequest, admission: RequestAdmitted, job: JobDispatched
    ) -> Used:
        completion_bound = min(self.completion_bound, admission.output_bound)
        units_bound = min(self.units_bound, admission.units_bound)
        claimed = self._claimed
        prompt_tokens = min(claimed.prompt_tokens, admission.prompt_bound)
        used = Used(*map(min, claimed, (prompt_tokens, completion_bound, units_bound, prompt_tokens)))
        if used != claimed:
            unit.record(
                request,
                UsageClaimClamped,
                job_id=self.job_id,
                machine_id=job.machine_id,
                claimed_prompt_tokens=self.claimed_prompt_tokens,
                claimed_completion_tokens=self.claimed_completion_tokens,
                claimed_units=self.claimed_units,
                claimed_cached_tokens=self.claimed_cached_tokens,
                prompt_bound=admission.prompt_bound,
                completion_bound=completion_bound,
                units_bound=units_bound,
            )
        unit.record(request, JobCompleted, job_id=self.job_id, **used._asdict())
        return used

    def _record_settlement(
        self, unit: Unit, request: InferenceRequest, admission: RequestAdmitted, job: JobDispatched, used: Used
    ) -> RequestSettled:
        free = job.provider_account_id == self.account_id
        raw_cost = 0 if free else job.quote.charge_micro_usd(*used)
        cost = min(raw_cost, admission.reserved)
        fee = percent_of(cost, self.fee_percent)
        unit.record(
            request,
            RequestSettled,
            request_id=admission.request_id,
            account_id=self.account_id,
            model=admission.model,
            job_id=self.job_id,
            machine_id=job.machine_id,
            provider_key=job.provider_key,
            provider_account_id=job.provider_account_id,
            **used._asdict(),
            unit=job.quote.unit,
            reserved=admission.reserved,
            raw_cost=raw_cost,
            cost=cost,
            clamped=raw_cost > cost,
            fee_percent=self.fee_percent,
            fee=fee,
            provider_amount=cost - fee,
            referral_percent=0,
            referral_amount=0,
            referrer_account="",
            platform_amount=fee,
            free=free,
        )
        return cast("RequestSettled", request.end)

    def _move_money(self, unit: Unit, settled: RequestSettled, payee: Wallet | None) -> None:
        wallet = unit.get(Wallet, self.account_id)
        split = wallet.split_of(settled.cost)
        unit.record(
            wallet,
            HoldCaptured,
            account_id=self.account_id,
            hold_id=settled.request_id,
            captured=settled.cost,
            released=settled.reserved - settled.cost,
            split=split,
        )
        if settled.cost == 0:
            return
        if payee is not None and settled.provider_amount:
            unit.record(
                payee,
                EarningCredited,
                account_id=settled.provider_account_id,
                amount=settled.provider_amount,
                kind="provider",
                reference=self.job_id,
            )
        postings = journal.settlement(
            consumer=self.account_id,
            split=split,
            provider_account=settled.provider_account_id,
            machine_id=settled.machine_id,
            provider_amount=settled.provider_amount,
            platform_amount=settled.platform_amount,
        )
        _post(unit, f"settle:{self.job_id}", "settlement", postings, self.job_id)


class Release(Operation[RequestSettled | RequestReleased], frozen=True, kw_only=True):
    """End a request without charge and return its whole hold. Returns the request's end, the first one if it had
    one."""

    request_id: UUID
    account_id: str
    reason: str
    failures: tuple[JobFailure, ...] = ()

    def needs(self) -> Sequence[Ref]:
        return ref(InferenceRequest, str(self.request_id)), ref(Wallet, self.account_id)

    def decide(self, unit: Unit) -> RequestSettled | RequestReleased:
        request = unit.get(InferenceRequest, str(self.request_id))
        if request.end is not None:
            return request.end
        admission = request.admission
        if admission is None or admission.account_id != self.account_id:
            raise UnknownRequest
        budget = unit.get(KeyBudget, admission.key_id)
        _record_failures(unit, request, self.failures)
        if not admission.self_route:
            key_budgets.release(unit, budget, admission.request_id)
            unit.record(
                unit.get(Wallet, self.account_id),
                HoldReleased,
                account_id=self.account_id,
                hold_id=admission.request_id,
                released=admission.reserved,
                reason=self.reason,
            )
        unit.record(
            request,
            RequestReleased,
            request_id=admission.request_id,
            account_id=self.account_id,
            reason=self.reason,
        )
        return cast("RequestReleased", request.end)


class OpenSession(Operation[str], frozen=True, kw_only=True):
    """Record a machine's connection, and the machine itself when it is new or describes itself differently.

    ``account_id`` is whom the connection's token stands for. It links the machine from now on; a connection without a
    token leaves the machine with the account that it has. Returns the account that it earns for, empty for none.
    """

    machine_id: str
    session_id: str
    gateway_id: str
    provider_key: str
    hardware: dict[str, str | int]
    models: tuple[str, ...]
    account_id: str = ""

    def needs(self) -> Sequence[Ref]:
        return (ref(ProviderMachine, self.machine_id),)

    def decide(self, unit: Unit) -> str:
        machine = unit.get(ProviderMachine, self.machine_id)
        if self.session_id in machine.open_sessions:
            return machine.account_id
        if machine.description != (self.hardware, self.models):
            unit.record(
                machine,
                MachineRegistered,
                machine_id=self.machine_id,
                provider_key=self.provider_key,
                hardware=self.hardware,
                models=self.models,
            )
        if self.account_id and self.account_id != machine.account_id:
            unit.record(machine, MachineLinked, machine_id=self.machine_id, account_id=self.account_id)
        unit.record(
            machine,
            ProviderSessionOpened,
            machine_id=self.machine_id,
            session_id=self.session_id,
            provider_key=self.provider_key,
            gateway_id=self.gateway_id,
        )
        return machine.account_id


class CloseSession(Operation[None], frozen=True, kw_only=True):
    machine_id: str
    session_id: str
    requests_served: int
    tokens_generated: int
    reason: str

    def needs(self) -> Sequence[Ref]:
        return (ref(ProviderMachine, self.machine_id),)

    def decide(self, unit: Unit) -> None:
        machine = unit.get(ProviderMachine, self.machine_id)
        if self.session_id not in machine.open_sessions:
            return
        unit.record(
            machine,
            ProviderSessionClosed,
            machine_id=self.machine_id,
            session_id=self.session_id,
            requests_served=self.requests_served,
            tokens_generated=self.tokens_generated,
            reason=self.reason,
        )


def _record_failures(unit: Unit, request: InferenceRequest, failures: Sequence[JobFailure]) -> None:
    for failure in failures:
        if failure.job_id in request.jobs and failure.job_id not in request.failed:
            unit.record(
                request,
                JobFailed,
                job_id=failure.job_id,
                reason=failure.reason,
                status_code=failure.status_code,
            )
