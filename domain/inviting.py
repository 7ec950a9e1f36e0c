"""The commands of invite codes: an administrator makes and ends them, an account redeems one once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from domain import journal
from domain.errors import Conflict, InvalidRequest, NotFound
from domain.eventsourced import Ref, ref
from domain.invites import (
    AMOUNT_MICRO_USD_MAX,
    SOURCE,
    USES_MAX,
    InviteCode,
    InviteCodeCreated,
    InviteCodeDeactivated,
    InviteCodeRedeemed,
    entry_key_of,
    reference_of,
)
from domain.journal import JournalEntry, JournalEntryPosted
from domain.ledger import Balance, Operation, Unit
from domain.wallet import PromotionalCreditGranted, Wallet

_CODE = re.compile(r"[A-Z0-9][A-Z0-9_-]{3,39}")


def normalised(code: str) -> str:
    """A code as it is kept, however it was typed.

    Raises:
        InvalidRequest: it cannot be one.
    """
    code = code.strip().upper()
    if not _CODE.fullmatch(code):
        raise InvalidRequest("'code' must have 4 to 40 letters, digits, hyphens and underscores.", param="code")
    return code


class CreateInvite(Operation[None], frozen=True, kw_only=True):
    """Make a code. Raises Conflict when it exists, InvalidRequest when a member is wrong."""

    code: str
    amount_micro_usd: int
    max_uses: int = 1
    expires_at: datetime | None = None

    def needs(self) -> Sequence[Ref]:
        return (ref(InviteCode, self.code),)

    def decide(self, unit: Unit) -> None:
        invite = unit.get(InviteCode, self.code)
        if invite.exists:
            raise Conflict("There is an invite code like that already; choose another.")
        if not 0 < self.amount_micro_usd <= AMOUNT_MICRO_USD_MAX:
            raise InvalidRequest("'amount_usd' must be above 0 and at most 10000.", param="amount_usd")
        if not 1 <= self.max_uses <= USES_MAX:
            raise InvalidRequest(f"'max_uses' must be at most {USES_MAX}.", param="max_uses")
        if self.expires_at is not None and self.expires_at <= unit.now:
            raise InvalidRequest("'expires_at' must be a time to come.", param="expires_at")
        unit.record(
            invite,
            InviteCodeCreated,
            code=self.code,
            amount=self.amount_micro_usd,
            max_uses=self.max_uses,
            expires_at=self.expires_at,
        )


class DeactivateInvite(Operation[None], frozen=True, kw_only=True):
    """End a code; what was credited stays. Raises NotFound."""

    code: str

    def needs(self) -> Sequence[Ref]:
        return (ref(InviteCode, self.code),)

    def decide(self, unit: Unit) -> None:
        invite = unit.get(InviteCode, self.code)
        if not invite.exists:
            raise NotFound("There is no invite code like that.")
        if invite.is_active:
            unit.record(invite, InviteCodeDeactivated, code=self.code)


class RedeemInvite(Operation[tuple[int, Balance]], frozen=True, kw_only=True):
    """Credit a code's amount to an account: promotional, so it can be spent and never withdrawn.

    The use and the credit are one transaction. Returns the amount and the balance after it.

    Raises:
        NotFound: no such code. InvalidRequest: it is inactive, expired or used up, or the account used it before.
    """

    code: str
    account_id: str

    @property
    def entry_key(self) -> str:
        return entry_key_of(self.code, self.account_id)

    def needs(self) -> Sequence[Ref]:
        return ref(InviteCode, self.code), ref(Wallet, self.account_id), ref(JournalEntry, self.entry_key)

    def decide(self, unit: Unit) -> tuple[int, Balance]:
        invite, wallet = unit.get(InviteCode, self.code), unit.get(Wallet, self.account_id)
        entry = unit.get(JournalEntry, self.entry_key)
        if not invite.exists:
            raise NotFound("There is no invite code like that; check it for typing errors.")
        if self.account_id in invite.accounts:
            raise InvalidRequest("This account redeemed this invite code already.", param="code")
        if not invite.is_active or (invite.expires_at is not None and invite.expires_at <= unit.now):
            raise InvalidRequest("This invite code is not valid any more.", param="code")
        if len(invite.accounts) >= invite.max_uses:
            raise InvalidRequest("This invite code is used up.", param="code")
        unit.record(
            invite,
            InviteCodeRedeemed,
            code=self.code,
            account_id=self.account_id,
            amount=invite.amount,
            use_number=len(invite.accounts) + 1,
        )
        unit.record(
            wallet,
            PromotionalCreditGranted,
            account_id=self.account_id,
            amount=invite.amount,
            source=SOURCE,
            reference=reference_of(self.code),
        )
        unit.record(
            entry,
            JournalEntryPosted,
            entry_key=self.entry_key,
            kind=SOURCE,
            effective_at=unit.now,
            postings=journal.promotional_credit(self.account_id, invite.amount),
            reference=reference_of(self.code),
            metadata={},
            reverses_entry_id=None,
        )
        return invite.amount, Balance(wallet.balance, wallet.withdrawable)
