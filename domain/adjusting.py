"""The commands of adjustments: one admin proposes, another one approves or rejects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Self
from uuid import UUID

from domain.accounts import Account
from domain.adjustments import (
    ADJUSTMENT_MICRO_USD_MAX,
    REASON_CODES,
    Adjustment,
    AdjustmentApproved,
    AdjustmentProposed,
    AdjustmentRejected,
    entry_key_of,
    postings_of,
)
from domain.errors import Conflict, Forbidden, InvalidRequest, NotFound
from domain.eventsourced import Actor, Ref, ref
from domain.journal import BUCKET_CODES, JournalEntry, JournalEntryPosted
from domain.ledger import Operation, Unit
from domain.money import format_usd
from domain.periods import AuditPeriod, period_of
from domain.wallet import Wallet, WalletAdjusted

REFERENCE_CHARACTERS_MAX = 200
NOTE_CHARACTERS_MAX = 500
EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)

_EVENT_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/[1-9][0-9]{0,8}")


class AdjustmentState(NamedTuple):
    """``status`` is proposed, approved or rejected; the second admin and the entry are there once it is decided."""

    proposal: AdjustmentProposed
    status: str
    decided_by: Actor | None
    decided_at: datetime | None
    entry_id: UUID | None

    @classmethod
    def of(cls, adjustment: Adjustment) -> Self:
        """Raises NotFound when it was never proposed."""
        if adjustment.proposal is None:
            raise NotFound("There is no such adjustment; propose it first.")
        decision = adjustment.decision
        return cls(
            proposal=adjustment.proposal,
            status=adjustment.status,
            decided_by=decision.actor if decision else None,
            decided_at=decision.timestamp if decision else None,
            entry_id=decision.entry_id if isinstance(decision, AdjustmentApproved) else None,
        )


class ProposeAdjustment(Operation[AdjustmentState], frozen=True, kw_only=True):
    """Ask for an adjustment. ``adjustment_id`` is the caller's: the same one with the same content is proposed once.

    Without an effective date it is the time of the proposal.

    Raises:
        InvalidRequest: a member is wrong. NotFound: no such account. Conflict: the id is taken by another proposal, or
        the effective date lies in a closed period.
    """

    adjustment_id: UUID
    account_id: str
    bucket: str
    amount_micro_usd: int
    reason: str
    reference: str
    note: str = ""
    effective_at: datetime | None = None
    corrects_event_id: str = ""

    def needs(self) -> Sequence[Ref]:
        return (
            ref(Adjustment, str(self.adjustment_id)),
            ref(Account, self.account_id),
            ref(Wallet, self.account_id),
        )

    def decide(self, unit: Unit) -> AdjustmentState:
        adjustment = unit.get(Adjustment, str(self.adjustment_id))
        if adjustment.proposal is not None:
            if not self._says_the_same(adjustment.proposal):
                raise Conflict("Another adjustment was proposed under this id; choose a new id.")
            return AdjustmentState.of(adjustment)
        self._check()
        effective_at = self.effective_at or unit.now
        if effective_at.tzinfo is None or not EARLIEST <= effective_at <= unit.now:
            raise InvalidRequest(
                "'effective_at' is a time with a zone, from 2020 on and not in the future.", param="effective_at"
            )
        if not (unit.get(Account, self.account_id).exists or unit.get(Wallet, self.account_id).exists):
            raise NotFound("There is no such account; check 'account_id'.")
        _require_open_period(unit, effective_at)
        unit.record(
            adjustment,
            AdjustmentProposed,
            adjustment_id=str(self.adjustment_id),
            account_id=self.account_id,
            bucket=self.bucket,
            amount=self.amount_micro_usd,
            reason=self.reason,
            reference=self.reference,
            note=self.note,
            effective_at=effective_at,
            corrects_event_id=self.corrects_event_id,
        )
        return AdjustmentState.of(adjustment)

    def _says_the_same(self, proposal: AdjustmentProposed) -> bool:
        return (
            self.account_id == proposal.account_id
            and self.bucket == proposal.bucket
            and self.amount_micro_usd == proposal.amount
            and self.reason == proposal.reason
            and self.reference == proposal.reference
            and self.note == proposal.note
            and self.effective_at in (None, proposal.effective_at)
            and self.corrects_event_id == proposal.corrects_event_id
        )

    def _check(self) -> None:
        if self.bucket not in BUCKET_CODES:
            raise InvalidRequest(f"'bucket' is one of {', '.join(BUCKET_CODES)}.", param="bucket")
        if self.reason not in REASON_CODES:
            raise InvalidRequest(f"'reason' is one of {', '.join(REASON_CODES)}.", param="reason")
        if not 0 < abs(self.amount_micro_usd) <= ADJUSTMENT_MICRO_USD_MAX:
            raise InvalidRequest("An adjustment moves more than nothing and at most 10^15 micro-USD.", param="amount")
        if not (0 < len(self.reference.strip()) <= REFERENCE_CHARACTERS_MAX and self.reference.isprintable()):
            raise InvalidRequest(
                "'reference' says where the papers are, in 1 to 200 printable characters.", param="reference"
            )
        _check_note(self.note)
        if self.corrects_event_id and not _EVENT_ID.fullmatch(self.corrects_event_id):
            raise InvalidRequest(
                "'corrects_event_id' is an aggregate's id, a slash and the event's version.", param="corrects_event_id"
            )


class ApproveAdjustment(Operation[AdjustmentState], frozen=True, kw_only=True):
    """Agree to another admin's proposal: wallet and journal change at once. Approving again returns the first result.

    Raises:
        NotFound: it was never proposed. Forbidden: the one who asked cannot agree. Conflict: it was rejected, its
        period is closed, or the wallet does not hold that much.
    """

    adjustment_id: UUID

    def needs(self) -> Sequence[Ref]:
        return ref(Adjustment, str(self.adjustment_id)), ref(JournalEntry, entry_key_of(self.adjustment_id))

    def decide(self, unit: Unit) -> AdjustmentState:
        adjustment = unit.get(Adjustment, str(self.adjustment_id))
        state = AdjustmentState.of(adjustment)
        if state.status == "approved":
            return state
        if state.status == "rejected":
            raise Conflict("This adjustment was rejected; propose it anew if it is right after all.")
        proposal = state.proposal
        if proposal.actor.id == self.actor.id:
            raise Forbidden("You proposed this adjustment; another admin has to approve it.")
        _require_open_period(unit, proposal.effective_at)
        wallet = unit.get(Wallet, proposal.account_id)
        _require_cover(wallet, proposal)
        entry = unit.get(JournalEntry, entry_key_of(self.adjustment_id))
        self._move_money(unit, wallet, entry, proposal)
        unit.record(adjustment, AdjustmentApproved, adjustment_id=str(self.adjustment_id), entry_id=entry.id)
        return AdjustmentState.of(adjustment)

    def _move_money(self, unit: Unit, wallet: Wallet, entry: JournalEntry, proposal: AdjustmentProposed) -> None:
        unit.record(
            wallet,
            WalletAdjusted,
            account_id=proposal.account_id,
            amount=proposal.amount,
            bucket=proposal.bucket,
            reason=proposal.reason,
            reference=proposal.adjustment_id,
            proposed_by=proposal.actor.id,
            approved_by=self.actor.id,
            corrects_event_id=proposal.corrects_event_id,
        )
        unit.record(
            entry,
            JournalEntryPosted,
            entry_key=entry_key_of(self.adjustment_id),
            kind="adjustment",
            effective_at=proposal.effective_at,
            postings=postings_of(proposal.account_id, proposal.bucket, proposal.amount, proposal.reason),
            reference=proposal.reference,
            metadata={"reason": proposal.reason, "corrects_event_id": proposal.corrects_event_id},
            reverses_entry_id=None,
        )


class RejectAdjustment(Operation[AdjustmentState], frozen=True, kw_only=True):
    """Refuse a proposal, or take one's own back. Rejecting again returns the first result.

    Raises:
        NotFound: it was never proposed. Conflict: it was approved; only another adjustment undoes that.
    """

    adjustment_id: UUID
    note: str = ""

    def needs(self) -> Sequence[Ref]:
        return (ref(Adjustment, str(self.adjustment_id)),)

    def decide(self, unit: Unit) -> AdjustmentState:
        adjustment = unit.get(Adjustment, str(self.adjustment_id))
        state = AdjustmentState.of(adjustment)
        if state.status == "approved":
            raise Conflict("This adjustment was approved and booked; propose another one that undoes it.")
        if state.status == "proposed":
            _check_note(self.note)
            unit.record(adjustment, AdjustmentRejected, adjustment_id=str(self.adjustment_id), note=self.note)
        return AdjustmentState.of(adjustment)


def _check_note(note: str) -> None:
    """What cannot be printed cannot be stored in every table that follows the log either."""
    if len(note) > NOTE_CHARACTERS_MAX or not note.isprintable():
        raise InvalidRequest("'note' is one line of at most 500 printable characters.", param="note")


def _require_open_period(unit: Unit, effective_at: datetime) -> None:
    period = period_of(effective_at)
    if unit.get(AuditPeriod, period).locked:
        raise Conflict(f"The period {period} is closed; propose it with an effective date in an open period.")


def _require_cover(wallet: Wallet, proposal: AdjustmentProposed) -> None:
    """No bucket goes below zero, and no open hold loses its cover."""
    held_in_bucket = getattr(wallet, proposal.bucket)
    if held_in_bucket + proposal.amount < 0:
        raise Conflict(
            f"The bucket '{proposal.bucket}' holds {format_usd(held_in_bucket)} USD, less than this adjustment takes."
        )
    if wallet.balance + proposal.amount < 0:
        raise Conflict(
            f"Open holds of {format_usd(wallet.held)} USD need what this adjustment takes; approve it when they ended."
        )
