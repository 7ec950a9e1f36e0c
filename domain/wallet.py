"""Wallet: an account's money in its buckets, and the holds on it (money, section 5).

A hold is not a debit: with C posted credits, W posted earnings and H open holds, ``balance = C + W - H`` and
``withdrawable = W - max(0, H - C)``. Spending posts only what a settlement captures, in a fixed order of buckets.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Self
from uuid import UUID

import msgspec

from domain.errors import InvariantViolated
from domain.eventsourced import Aggregate, DomainEvent


class Split(msgspec.Struct, frozen=True, omit_defaults=True):
    """An amount by bucket, in the order in which buckets are spent. Decided once and stored."""

    promotional: int = 0
    purchased: int = 0
    reward: int = 0
    referral: int = 0
    provider: int = 0

    @property
    def total(self) -> int:
        return self.promotional + self.purchased + self.reward + self.referral + self.provider


BUCKETS = Split.__struct_fields__

EARNING_BUCKETS = {
    "provider": "provider",
    "referral": "referral",
    "admin_reward": "reward",
    "base_reward": "reward",
}
"""The bucket that each kind of earning goes to."""


class PromotionalCreditGranted(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "Wallet.PromotionalCreditGranted"
    account_id: str
    amount: int
    source: str
    reference: str

    def apply(self, aggregate: Any) -> None:
        aggregate.account_id = self.account_id
        aggregate.promotional += self.amount


class EarningCredited(DomainEvent, frozen=True, kw_only=True):
    """``kind`` is a key of EARNING_BUCKETS; ``reference`` is the job id for a provider's earning."""

    TOPIC: ClassVar[str] = "Wallet.EarningCredited"
    account_id: str
    amount: int
    kind: str
    reference: str

    def apply(self, aggregate: Any) -> None:
        aggregate.account_id = self.account_id
        bucket = EARNING_BUCKETS[self.kind]
        setattr(aggregate, bucket, getattr(aggregate, bucket) + self.amount)


class HoldPlaced(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "Wallet.HoldPlaced"
    account_id: str
    hold_id: str
    amount: int
    expires_at: datetime
    purpose: str

    def apply(self, aggregate: Any) -> None:
        aggregate.account_id = self.account_id
        aggregate.holds[self.hold_id] = self.amount
        aggregate.held += self.amount


class HoldCaptured(DomainEvent, frozen=True, kw_only=True):
    """The hold ends: ``captured`` is spent by ``split``, ``released`` returns."""

    TOPIC: ClassVar[str] = "Wallet.HoldCaptured"
    account_id: str
    hold_id: str
    captured: int
    released: int
    split: Split

    def apply(self, aggregate: Any) -> None:
        aggregate.held -= aggregate.holds.pop(self.hold_id)
        split = self.split
        aggregate.promotional -= split.promotional
        aggregate.purchased -= split.purchased
        aggregate.reward -= split.reward
        aggregate.referral -= split.referral
        aggregate.provider -= split.provider


class HoldReleased(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "Wallet.HoldReleased"
    account_id: str
    hold_id: str
    released: int
    reason: str

    def apply(self, aggregate: Any) -> None:
        aggregate.held -= aggregate.holds.pop(self.hold_id)


class WalletAdjusted(DomainEvent, frozen=True, kw_only=True):
    """A correction by hand: ``amount`` is signed, ``reference`` the adjustment. Whoever approved it is another one
    than whoever proposed it."""

    TOPIC: ClassVar[str] = "Wallet.WalletAdjusted"
    account_id: str
    amount: int
    bucket: str
    reason: str
    reference: str
    proposed_by: str
    approved_by: str
    corrects_event_id: str

    def apply(self, aggregate: Any) -> None:
        aggregate.account_id = self.account_id
        setattr(aggregate, self.bucket, getattr(aggregate, self.bucket) + self.amount)


class WalletState(msgspec.Struct, frozen=True):
    """A wallet's snapshot."""

    account_id: str
    buckets: Split
    holds: dict[str, int]


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(WalletState)


class Wallet(Aggregate):
    """Amounts are micro-USD. ``holds`` maps each open hold to its amount; ``held`` is their sum."""

    KIND = "Wallet"
    SNAPSHOT_VERSION = 1

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.account_id = ""
        self.promotional = 0
        self.purchased = 0
        self.reward = 0
        self.referral = 0
        self.provider = 0
        self.holds: dict[str, int] = {}
        self.held = 0

    def copy(self) -> Self:
        twin = super().copy()
        twin.holds = dict(self.holds)
        return twin

    def state(self) -> bytes:
        return _encoder.encode(
            WalletState(self.account_id, Split(*(getattr(self, bucket) for bucket in BUCKETS)), self.holds)
        )

    def restore(self, state: bytes) -> None:
        found = _decoder.decode(state)
        self.account_id = found.account_id
        for bucket in BUCKETS:
            setattr(self, bucket, getattr(found.buckets, bucket))
        self.holds = found.holds
        self.held = sum(found.holds.values())

    @property
    def credits(self) -> int:
        return self.promotional + self.purchased

    @property
    def earnings(self) -> int:
        return self.reward + self.referral + self.provider

    @property
    def balance(self) -> int:
        """Everything that can be spent now."""
        return self.credits + self.earnings - self.held

    @property
    def withdrawable(self) -> int:
        """The part that was earned and is not needed to cover open holds."""
        return self.earnings - max(0, self.held - self.credits)

    def split_of(self, amount: int) -> Split:
        """How spending an amount falls on the buckets: promotional first, a provider's earnings last."""
        taken: dict[str, int] = {}
        rest = amount
        for bucket in BUCKETS:
            taken[bucket] = min(rest, getattr(self, bucket))
            rest -= taken[bucket]
        if rest:
            raise InvariantViolated(f"wallet {self.id} cannot cover {amount} micro-USD that it holds")
        return Split(**taken)

    def check(self) -> None:
        if min(self.promotional, self.purchased, self.reward, self.referral, self.provider, self.held) < 0:
            raise InvariantViolated(f"wallet {self.id}: a bucket is below zero")
        balance = self.balance
        if balance < 0 or not 0 <= self.withdrawable <= balance:
            raise InvariantViolated(f"wallet {self.id}: the balance is below zero or below what is withdrawable")
