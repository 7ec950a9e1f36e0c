"""What must hold of the events of one transaction by themselves, without any history.

A command writes everything that belongs together in one transaction: the hold with its admission, the settlement with
its capture, its earning and its journal entry. So each side is looked up in the other within the transaction, and what
was right at every commit is right over the whole log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from domain.accounts import AccountOpened
from domain.adjustments import AdjustmentApproved, AdjustmentProposed, AdjustmentRejected
from domain.eventsourced import DomainEvent
from domain.invariants.catalogue import Report, Violation
from domain.invites import InviteCodeCreated, InviteCodeDeactivated, InviteCodeRedeemed, entry_key_of, reference_of
from domain.journal import BUCKET_CODES, CHART, JournalEntryPosted
from domain.key_budgets import KeySpendCaptured, KeySpendHeld, KeySpendReleased
from domain.machines import MachineLinked, MachineRegistered, ProviderSessionClosed, ProviderSessionOpened
from domain.periods import PeriodClosed, PeriodLocked
from domain.requests import (
    JobCompleted,
    JobDispatched,
    JobFailed,
    RequestAdmitted,
    RequestReleased,
    RequestSettled,
    UsageClaimClamped,
)
from domain.wallet import (
    EARNING_BUCKETS,
    EarningCredited,
    HoldCaptured,
    HoldPlaced,
    HoldReleased,
    PromotionalCreditGranted,
    WalletAdjusted,
)

AdmissionOf = Callable[[UUID], RequestAdmitted | None]
"""Finds the admission of a request by the id of its aggregate; None when this reader cannot know it."""

WITHOUT_MONEY: frozenset[type[DomainEvent]] = frozenset(
    {
        AccountOpened,
        AdjustmentProposed,
        AdjustmentRejected,
        InviteCodeCreated,
        InviteCodeDeactivated,
        PeriodLocked,
        PeriodClosed,
        JobDispatched,
        JobFailed,
        UsageClaimClamped,
        KeySpendHeld,
        KeySpendCaptured,
        KeySpendReleased,
        MachineRegistered,
        MachineLinked,
        ProviderSessionOpened,
        ProviderSessionClosed,
    }
)
"""Events that move no money and end no request. An event belongs here or is read below; a test asks for that."""

_MIRRORED = frozenset(BUCKET_CODES.values())
_INVITED = reference_of("")
_EARNING_CODES = {kind: BUCKET_CODES[bucket] for kind, bucket in EARNING_BUCKETS.items()}


class TransactionCheck:
    """Reads the events of one transaction in their order; ``close`` is its commit, and makes it ready for the next."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._readers: dict[type[DomainEvent], Callable[[Any], None]] = {
            PromotionalCreditGranted: self._read_credit,
            EarningCredited: self._read_earning,
            WalletAdjusted: self._read_adjustment,
            HoldPlaced: self._read_hold,
            HoldCaptured: self._read_capture,
            HoldReleased: self._read_release,
            JournalEntryPosted: self._read_entry,
            RequestAdmitted: self._read_admission,
            JobCompleted: self._read_completion,
            RequestSettled: self._read_end,
            RequestReleased: self._read_end,
            AdjustmentApproved: self._read_approval,
            InviteCodeRedeemed: self._read_redemption,
        }
        self._forget()

    @property
    def known(self) -> frozenset[type[DomainEvent]]:
        """The events that are read here, and those that need no reading."""
        return WITHOUT_MONEY | self._readers.keys()

    def _forget(self) -> None:
        self._position = 0
        self._differences: dict[tuple[str, str], int] = {}  # wallet less journal, by account code and account
        self._placed: dict[str, HoldPlaced] = {}
        self._resolved: dict[str, HoldCaptured | HoldReleased] = {}
        self._admitted: dict[str, RequestAdmitted] = {}
        self._completed: dict[str, JobCompleted] = {}
        self._ends: dict[str, RequestSettled | RequestReleased] = {}
        self._entries: dict[str, JournalEntryPosted] = {}
        self._earned: dict[str, EarningCredited] = {}
        self._adjusted: dict[str, WalletAdjusted] = {}
        self._approved: dict[str, AdjustmentApproved] = {}
        self._redeemed: dict[str, InviteCodeRedeemed] = {}
        self._invited: dict[str, PromotionalCreditGranted] = {}

    def _say(self, invariant: int, subject: str, what: str) -> None:
        self._report(Violation(invariant, self._position, subject, what))

    def read(self, position: int, event: DomainEvent) -> None:
        reader = self._readers.get(type(event))
        if reader is not None:
            self._position = position
            reader(event)

    # --- wallets -----------------------------------------------------------------------------------------------------

    def _move(self, code: str, account_id: str, amount: int) -> None:
        key = (code, account_id)
        self._differences[key] = self._differences.get(key, 0) + amount

    def _read_credit(self, event: PromotionalCreditGranted) -> None:
        if event.amount <= 0:
            self._say(3, event.account_id, "a credit is not above zero")
        self._move("2005", event.account_id, event.amount)
        if event.reference.startswith(_INVITED):
            key = f"{event.reference}:{event.account_id}"
            if key in self._invited:
                self._say(11, key, "an invite is credited twice")
            self._invited[key] = event

    def _read_redemption(self, event: InviteCodeRedeemed) -> None:
        key = entry_key_of(event.code, event.account_id)
        if key in self._redeemed:
            self._say(11, key, "an account uses an invite twice")
        self._redeemed[key] = event

    def _read_earning(self, event: EarningCredited) -> None:
        if event.amount <= 0:
            self._say(3, event.account_id, "an earning is not above zero")
        code = _EARNING_CODES.get(event.kind)
        if code is None:
            self._say(4, event.account_id, f"an earning of kind {event.kind!r} has no account in the journal")
            return
        self._move(code, event.account_id, event.amount)
        if event.kind == "provider":
            if event.reference in self._earned:
                self._say(6, event.reference, "a job earns twice")
            self._earned[event.reference] = event

    def _read_adjustment(self, event: WalletAdjusted) -> None:
        code = BUCKET_CODES.get(event.bucket)
        if code is None:
            self._say(4, event.account_id, f"a bucket {event.bucket!r} has no account in the journal")
            return
        if event.amount == 0 or event.approved_by in ("", event.proposed_by):
            self._say(4, event.reference, "an adjustment moves nothing, or one person alone made it")
        if event.reference in self._adjusted:
            self._say(4, event.reference, "an adjustment moves money twice")
        self._adjusted[event.reference] = event
        self._move(code, event.account_id, event.amount)

    def _read_approval(self, event: AdjustmentApproved) -> None:
        self._approved[event.adjustment_id] = event

    def _read_hold(self, event: HoldPlaced) -> None:
        if event.amount < 0:
            self._say(5, event.hold_id, "a hold is below zero")
        if event.hold_id in self._placed:
            self._say(5, event.hold_id, "a hold is placed twice")
        self._placed[event.hold_id] = event

    def _read_capture(self, event: HoldCaptured) -> None:
        split = event.split
        parts = (split.promotional, split.purchased, split.reward, split.referral, split.provider)
        if sum(parts) != event.captured or min(parts) < 0:
            self._say(5, event.hold_id, "the split of a capture is not what was captured")
        if event.captured < 0 or event.released < 0:
            self._say(5, event.hold_id, "a capture takes or returns less than nothing")
        for code, amount in zip(BUCKET_CODES.values(), parts, strict=True):
            if amount:
                self._move(code, event.account_id, -amount)
        self._resolve(event)

    def _read_release(self, event: HoldReleased) -> None:
        self._resolve(event)

    def _resolve(self, event: HoldCaptured | HoldReleased) -> None:
        if event.hold_id in self._resolved:
            self._say(5, event.hold_id, "a hold is resolved twice")
        self._resolved[event.hold_id] = event

    # --- the journal -------------------------------------------------------------------------------------------------

    def _read_entry(self, event: JournalEntryPosted) -> None:
        if event.entry_key in self._entries:
            self._say(6, event.entry_key, "a journal entry is posted twice")
        self._entries[event.entry_key] = event
        difference = 0
        for line in event.postings:
            amount, code = line.amount, line.account_code
            if amount <= 0 or code not in CHART or line.direction not in ("debit", "credit"):
                self._say(1, event.entry_key, "a posting is not above zero on an account of the chart")
            signed = amount if line.direction == "debit" else -amount
            difference += signed
            if code in _MIRRORED:
                self._move(code, line.sub_account, signed)
        if difference or len(event.postings) < 2:
            self._say(1, event.entry_key, "an entry has fewer than two postings, or its debits and credits differ")

    # --- requests ----------------------------------------------------------------------------------------------------

    def _read_admission(self, event: RequestAdmitted) -> None:
        if event.request_id in self._admitted:
            self._say(6, event.request_id, "a request is admitted twice")
        self._admitted[event.request_id] = event

    def _read_completion(self, event: JobCompleted) -> None:
        if event.job_id in self._completed:
            self._say(6, event.job_id, "a job completes twice")
        self._completed[event.job_id] = event

    def _read_end(self, event: RequestSettled | RequestReleased) -> None:
        if event.request_id in self._ends:
            self._say(6, event.request_id, "a request ends twice")
        self._ends[event.request_id] = event

    # --- the commit --------------------------------------------------------------------------------------------------

    def close(self, position: int, admission_of: AdmissionOf) -> None:
        """Check what belongs together, then forget it. ``position`` is that of the transaction's last event."""
        self._position = position
        for (code, account_id), difference in self._differences.items():
            if difference:
                self._say(4, account_id, f"the wallet moved by {difference} micro-USD other than account {code}")
        self._close_admissions()
        for request_id, end in self._ends.items():
            resolved = self._resolved.pop(request_id, None)
            admission = admission_of(end.originator_id)
            if isinstance(end, RequestSettled):
                self._close_settlement(end, resolved, admission)
            elif _holds_nothing(admission):
                if resolved is not None:
                    self._say(5, request_id, "a request without a hold resolved one")
            elif admission is None and resolved is None:
                pass  # admitted before this part of the log, where it may have held nothing
            elif not isinstance(resolved, HoldReleased) or resolved.account_id != end.account_id:
                self._say(5, request_id, "a released request left its hold")
            elif admission is not None and resolved.released != admission.reserved:
                self._say(5, request_id, "a released request did not return its whole hold")
        self._close_adjustments()
        self._close_invites()
        self._close_leftovers()
        self._forget()

    def _close_admissions(self) -> None:
        for hold_id, hold in self._placed.items():
            admission = self._admitted.pop(hold_id, None)
            if admission is None or (admission.account_id, admission.reserved) != (hold.account_id, hold.amount):
                self._say(5, hold_id, "a hold is not what a request was admitted with")
        for request_id, admission in self._admitted.items():
            if not _holds_nothing(admission):
                self._say(5, request_id, "a request was admitted without its hold")

    def _close_settlement(
        self,
        settled: RequestSettled,
        capture: HoldCaptured | HoldReleased | None,
        admission: RequestAdmitted | None,
    ) -> None:
        job_id, cost = settled.job_id, settled.cost
        if _holds_nothing(admission) or (admission is None and capture is None and settled.reserved == 0):
            if capture is not None or not settled.free:
                self._say(5, settled.request_id, "a request without a hold was not served for free")
        elif (
            not isinstance(capture, HoldCaptured)
            or capture.account_id != settled.account_id
            or capture.captured != cost
            or capture.captured + capture.released != settled.reserved
        ):
            self._say(5, settled.request_id, "a settlement and the capture of its hold differ")
        completed = self._completed.pop(job_id, None)
        if completed is None or (
            completed.prompt_tokens,
            completed.completion_tokens,
            completed.units,
            completed.cached_tokens,
        ) != (settled.prompt_tokens, settled.completion_tokens, settled.units, settled.cached_tokens):
            self._say(6, job_id, "the usage that is charged is not the usage that completed")
        self._close_shares(settled, admission)
        entry, earning = self._entries.pop(f"settle:{job_id}", None), self._earned.pop(job_id, None)
        if (entry is None) != (cost == 0):
            self._say(6, job_id, "a charge has no journal entry, or one that cost nothing has one")
        elif entry is not None:
            self._close_entry(settled, entry)
        owed = settled.provider_amount if settled.provider_account_id else 0
        if (earning.amount if earning else 0) != owed or (
            earning is not None and earning.account_id != settled.provider_account_id
        ):
            self._say(6, job_id, "the provider's earning is not the settlement's share")

    def _close_shares(self, settled: RequestSettled, admission: RequestAdmitted | None) -> None:
        cost, request_id = settled.cost, settled.request_id
        shares = (settled.provider_amount, settled.platform_amount, settled.referral_amount)
        if sum(shares) != cost or min(shares) < 0:
            self._say(7, request_id, "the shares do not add up to the cost")
        if settled.fee != settled.platform_amount + settled.referral_amount:
            self._say(7, request_id, "the fee is not what platform and referrer got")
        if cost < 0 or cost != min(settled.raw_cost, settled.reserved):
            self._say(7, request_id, "the cost is not the price within the hold")
        if settled.free and cost:
            self._say(7, request_id, "a free request costs something")
        if not 0 <= settled.cached_tokens <= settled.prompt_tokens:
            self._say(7, request_id, "more of the prompt was remembered than there was")
        if admission is None:
            return
        if (settled.account_id, settled.reserved) != (admission.account_id, admission.reserved):
            self._say(7, request_id, "the hold or the account is not that of the admission")
        if not settled.free and cost < min(admission.quote.minimum_charge, admission.reserved):
            self._say(7, request_id, "the cost is below the minimum charge")

    def _close_entry(self, settled: RequestSettled, entry: JournalEntryPosted) -> None:
        provider = platform = referral = 0
        for line in entry.postings:
            if line.direction != "credit":
                continue
            if line.account_code == "4000":
                platform += line.amount
            elif line.account_code == "2110" and line.sub_account == settled.referrer_account:
                referral += line.amount
            elif (line.account_code, line.sub_account) == (
                ("2100", settled.provider_account_id) if settled.provider_account_id else ("2190", settled.machine_id)
            ):
                provider += line.amount
        if (provider, platform, referral) != (
            settled.provider_amount,
            settled.platform_amount,
            settled.referral_amount,
        ):
            self._say(6, settled.job_id, "the journal entry of a settlement does not say what the settlement says")

    def _close_adjustments(self) -> None:
        for adjustment_id, adjusted in self._adjusted.items():
            entry = self._entries.pop(f"adjust:{adjustment_id}", None)
            approved = self._approved.pop(adjustment_id, None)
            if entry is None:
                self._say(4, adjustment_id, "an adjustment has no journal entry")
            elif approved is None or approved.entry_id != entry.originator_id:
                self._say(4, adjustment_id, "an adjustment and its approval name different journal entries")
            elif adjusted.account_id not in {line.sub_account for line in entry.postings}:
                self._say(4, adjustment_id, "the journal entry of an adjustment is about another account")
        for adjustment_id in self._approved:
            self._say(4, adjustment_id, "an adjustment was approved and moved no money")

    def _close_invites(self) -> None:
        for key, redeemed in self._redeemed.items():
            credit, entry = self._invited.pop(key, None), self._entries.pop(key, None)
            if credit is None or credit.amount != redeemed.amount:
                self._say(11, key, "the use of an invite and its credit differ")
            if entry is None:
                self._say(11, key, "the use of an invite has no journal entry")
        for key in self._invited:
            self._say(11, key, "an invite was credited though nobody used it")

    def _close_leftovers(self) -> None:
        for hold_id in self._resolved:
            self._say(5, hold_id, "a hold was resolved though no request ended")
        for job_id in self._completed:
            self._say(6, job_id, "a job completed though its request was not settled")
        for job_id in self._earned:
            self._say(6, job_id, "a job earned though its request was not settled")
        for key in self._entries:
            if key.startswith("settle:"):
                self._say(6, key, "a settlement was posted though no request was settled")
            elif key.startswith("adjust:"):
                self._say(4, key, "an adjustment was posted though no wallet was adjusted")
            elif key.startswith(_INVITED):
                self._say(11, key, "an invite was posted though nobody used it")


def _holds_nothing(admission: RequestAdmitted | None) -> bool:
    """Whether a request was restricted to machines of its own account, which serve it for free."""
    return admission is not None and admission.self_route and admission.reserved == 0
