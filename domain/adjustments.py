"""Adjustment: a correction of a wallet by hand, which two admins have to want (money, sections 12.5 and 12.7)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from domain.eventsourced import Aggregate, DomainEvent
from domain.journal import BUCKET_CODES, Posting, balanced, credit, debit

REASON_CODES: Mapping[str, str] = {
    "promotion": "5000",
    "loss": "5030",
    "rounding": "4020",
    "forfeiture": "4090",
}
"""Why a wallet is adjusted, and the account of the chart that stands against its bucket."""

ADJUSTMENT_MICRO_USD_MAX = 10**15


def entry_key_of(adjustment_id: UUID) -> str:
    return f"adjust:{adjustment_id}"


def postings_of(account_id: str, bucket: str, amount: int, reason: str) -> tuple[Posting, ...]:
    """A positive amount credits the bucket, a negative one takes from it."""
    wallet, counter = BUCKET_CODES[bucket], REASON_CODES[reason]
    if amount > 0:
        return balanced((debit(counter, "", amount), credit(wallet, account_id, amount)))
    return balanced((debit(wallet, account_id, -amount), credit(counter, "", -amount)))


class AdjustmentProposed(DomainEvent, frozen=True, kw_only=True):
    """One admin asks. ``amount`` is signed micro-USD, ``reason`` a key of REASON_CODES, ``reference`` where the papers
    are, ``corrects_event_id`` the event that was wrong (aggregate id, slash, version) or empty."""

    TOPIC: ClassVar[str] = "Adjustment.AdjustmentProposed"
    adjustment_id: str
    account_id: str
    bucket: str
    amount: int
    reason: str
    reference: str
    note: str
    effective_at: datetime
    corrects_event_id: str

    def apply(self, aggregate: Any) -> None:
        aggregate.proposal = self


class AdjustmentApproved(DomainEvent, frozen=True, kw_only=True):
    """Another admin agreed; the wallet and the journal changed in the same transaction."""

    TOPIC: ClassVar[str] = "Adjustment.AdjustmentApproved"
    adjustment_id: str
    entry_id: UUID

    def apply(self, aggregate: Any) -> None:
        aggregate.decision = self


class AdjustmentRejected(DomainEvent, frozen=True, kw_only=True):
    """An admin disagreed, or the one who asked took it back. Nothing changed."""

    TOPIC: ClassVar[str] = "Adjustment.AdjustmentRejected"
    adjustment_id: str
    note: str

    def apply(self, aggregate: Any) -> None:
        aggregate.decision = self


class Adjustment(Aggregate):
    KIND = "Adjustment"

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.proposal: AdjustmentProposed | None = None
        self.decision: AdjustmentApproved | AdjustmentRejected | None = None

    @property
    def status(self) -> str:
        if self.decision is None:
            return "proposed"
        return "approved" if isinstance(self.decision, AdjustmentApproved) else "rejected"
