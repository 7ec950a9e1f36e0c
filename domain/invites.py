"""InviteCode: promotional credit for whoever has the code, so many times and once an account (money, section 9)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Self
from uuid import UUID

import msgspec

from domain.errors import InvariantViolated
from domain.eventsourced import Aggregate, DomainEvent

AMOUNT_MICRO_USD_MAX = 10_000 * 1_000_000
USES_MAX = 10_000
"""The aggregate knows each account that used it, so there is an end."""

SOURCE = "invite_credit"


def reference_of(code: str) -> str:
    """What the credit of a code refers to."""
    return f"invite:{code}"


def entry_key_of(code: str, account_id: str) -> str:
    """The key of the journal entry of one redemption."""
    return f"{reference_of(code)}:{account_id}"


class InviteCodeCreated(DomainEvent, frozen=True, kw_only=True):
    """``amount`` is the credit of each use; without ``expires_at`` the code holds until it is deactivated."""

    TOPIC: ClassVar[str] = "InviteCode.InviteCodeCreated"
    code: str
    amount: int
    max_uses: int
    expires_at: datetime | None

    def apply(self, aggregate: Any) -> None:
        aggregate.code, aggregate.amount, aggregate.max_uses = self.code, self.amount, self.max_uses
        aggregate.expires_at, aggregate.is_active = self.expires_at, True


class InviteCodeRedeemed(DomainEvent, frozen=True, kw_only=True):
    """One use. ``use_number`` counts from 1; the credit stands in the account's wallet and in the journal."""

    TOPIC: ClassVar[str] = "InviteCode.InviteCodeRedeemed"
    code: str
    account_id: str
    amount: int
    use_number: int

    def apply(self, aggregate: Any) -> None:
        aggregate.accounts.add(self.account_id)


class InviteCodeDeactivated(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "InviteCode.InviteCodeDeactivated"
    code: str

    def apply(self, aggregate: Any) -> None:
        aggregate.is_active = False


class InviteCodeState(msgspec.Struct, frozen=True):
    """An invite code's snapshot."""

    code: str
    amount: int
    max_uses: int
    expires_at: datetime | None
    is_active: bool
    accounts: list[str]


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(InviteCodeState)


class InviteCode(Aggregate):
    """``amount`` is micro-USD for each of the ``accounts`` that used the code."""

    KIND = "InviteCode"
    SNAPSHOT_VERSION = 1

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.code = ""
        self.amount = 0
        self.max_uses = 0
        self.expires_at: datetime | None = None
        self.is_active = False
        self.accounts: set[str] = set()

    def copy(self) -> Self:
        twin = super().copy()
        twin.accounts = set(self.accounts)
        return twin

    def state(self) -> bytes:
        return _encoder.encode(
            InviteCodeState(
                self.code, self.amount, self.max_uses, self.expires_at, self.is_active, sorted(self.accounts)
            )
        )

    def restore(self, state: bytes) -> None:
        found = _decoder.decode(state)
        self.code, self.amount, self.max_uses = found.code, found.amount, found.max_uses
        self.expires_at, self.is_active, self.accounts = found.expires_at, found.is_active, set(found.accounts)

    def check(self) -> None:
        if len(self.accounts) > self.max_uses:
            raise InvariantViolated(f"invite code {self.id} was used more often than it allows")
