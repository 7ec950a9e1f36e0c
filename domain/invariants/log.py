"""The check of a whole log, or of its newest part: one pass, in memory that grows with accounts and not with events."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from domain.eventsourced import DomainEvent
from domain.invariants.catalogue import Report, Violation
from domain.invariants.transaction import TransactionCheck
from domain.invites import InviteCodeCreated, InviteCodeDeactivated, InviteCodeRedeemed
from domain.journal import JournalEntry, JournalEntryPosted
from domain.requests import InferenceRequest, RequestAdmitted, RequestReleased, RequestSettled
from domain.wallet import (
    BUCKETS,
    EARNING_BUCKETS,
    EarningCredited,
    HoldCaptured,
    HoldPlaced,
    HoldReleased,
    PromotionalCreditGranted,
    WalletAdjusted,
)


class Logged(NamedTuple):
    """An event where it stands in the log."""

    position: int
    recorded_at: datetime
    event: DomainEvent


WalletEvent = PromotionalCreditGranted | EarningCredited | WalletAdjusted | HoldPlaced | HoldCaptured | HoldReleased


class WalletFold:
    """A wallet as its events tell it, without the aggregate's own code.

    ``move`` is for who knows which holds are open; ``follow`` keeps them here, for who reads one wallet alone.
    """

    __slots__ = ("buckets", "held", "holds", "version")

    def __init__(self) -> None:
        self.buckets = dict.fromkeys(BUCKETS, 0)
        self.held = 0
        self.holds: dict[str, int] = {}
        self.version = 0

    @property
    def balance(self) -> int:
        return sum(self.buckets.values()) - self.held

    @property
    def withdrawable(self) -> int:
        credit = self.buckets["promotional"] + self.buckets["purchased"]
        return sum(self.buckets.values()) - credit - max(0, self.held - credit)

    @property
    def is_overdrawn(self) -> bool:
        return min(self.buckets.values()) < 0 or self.balance < 0 or not 0 <= self.withdrawable <= self.balance

    def move(self, event: WalletEvent) -> None:
        """Change the buckets as an event says; holds are told apart by whoever knows what is open."""
        if isinstance(event, PromotionalCreditGranted):
            self.buckets["promotional"] += event.amount
        elif isinstance(event, EarningCredited):
            self.buckets[EARNING_BUCKETS.get(event.kind, "reward")] += event.amount
        elif isinstance(event, WalletAdjusted):
            self.buckets[event.bucket] = self.buckets.get(event.bucket, 0) + event.amount
        elif isinstance(event, HoldCaptured):
            for bucket in BUCKETS:
                self.buckets[bucket] -= getattr(event.split, bucket)

    def follow(self, event: DomainEvent) -> None:
        """Take the wallet's next event, holds included. Other events are no news."""
        if not isinstance(event, WalletEvent):
            return
        self.version = event.originator_version
        self.move(event)
        if isinstance(event, HoldPlaced):
            self.holds[event.hold_id] = event.amount
            self.held += event.amount
        elif isinstance(event, HoldCaptured | HoldReleased):
            self.held -= self.holds.pop(event.hold_id, 0)


class _Invite:
    """An invite code as its events tell it; ``uses`` are the accounts that used it."""

    def __init__(self, created: InviteCodeCreated) -> None:
        self.created = created
        self.uses: set[str] = set()
        self.is_active = True


class LogCheck:
    """Reads a log in its order. ``close`` ends it.

    A log that is not ``whole`` begins somewhere: what happened before is unknown, so balances are not checked, and a
    hold or request from before is taken as it comes. Transactions are told apart by their recorded time; two that share
    it are checked as one, which finds the same and only later.
    """

    def __init__(self, report: Report, *, after_position: int = 0, whole: bool = True) -> None:
        self.position = after_position
        self.wallets: dict[str, WalletFold] = {}
        self.open_requests: dict[UUID, RequestAdmitted] = {}
        self._holds: dict[str, tuple[str, int]] = {}
        self._ending: dict[UUID, RequestAdmitted] = {}
        self._invites: dict[str, _Invite] = {}
        self._debits = 0
        self._credits = 0
        self._recorded_at: datetime | None = None
        self._report = report
        self._whole = whole
        self._in_first = not whole
        self._transaction = TransactionCheck(report)

    def read(self, logged: Logged) -> None:
        position, recorded_at, event = logged
        if position != self.position + 1:
            self._say(14, position, "log", f"position {self.position + 1} is missing")
        if recorded_at != self._recorded_at:
            self._close_transaction()
            if self._recorded_at is not None and recorded_at < self._recorded_at:
                self._say(14, position, "log", "the recorded time runs backwards")
            self._recorded_at = recorded_at
        self.position = position
        if not self._in_first:
            self._transaction.read(position, event)
        self._follow(position, event)

    def close(self) -> None:
        """The log ends here."""
        self._close_transaction()
        self._recorded_at = None

    def _say(self, invariant: int, position: int, subject: str, what: str) -> None:
        self._report(Violation(invariant, position, subject, what))

    def _close_transaction(self) -> None:
        if self._recorded_at is None:
            return
        # A part of a log may begin inside of a transaction, whose other half is not seen.
        if not self._in_first:
            self._transaction.close(self.position, self._ending.get)
        self._in_first = False
        self._ending.clear()
        if self._debits != self._credits:
            self._say(2, self.position, "journal", "the journal's debits and credits differ")
            self._debits = self._credits

    def _follow(self, position: int, event: DomainEvent) -> None:
        match event:
            case PromotionalCreditGranted() | EarningCredited() | WalletAdjusted():
                self._follow_wallet(position, event)
            case HoldPlaced() | HoldCaptured() | HoldReleased():
                self._follow_wallet(position, event)
            case JournalEntryPosted():
                self._follow_entry(position, event)
            case InviteCodeCreated() | InviteCodeRedeemed() | InviteCodeDeactivated():
                self._follow_invite(position, event)
            case RequestAdmitted():
                key = InferenceRequest.id_of(event.request_id)
                if event.originator_version != 1 or event.originator_id != key:
                    self._say(6, position, event.request_id, "a request is admitted twice, or under another's id")
                self.open_requests[event.originator_id] = event
            case RequestSettled() | RequestReleased():
                admission = self.open_requests.pop(event.originator_id, None)
                if admission is not None:
                    self._ending[event.originator_id] = admission
                elif self._whole:
                    self._say(6, position, event.request_id, "a request ends that is not open")
            case _:
                pass

    # --- wallets -----------------------------------------------------------------------------------------------------

    def _follow_wallet(self, position: int, event: WalletEvent) -> None:
        wallet = self.wallets.get(event.account_id)
        if wallet is None:
            wallet = self.wallets[event.account_id] = WalletFold()
            wallet.version = 0 if self._whole else event.originator_version - 1
        if event.originator_version != wallet.version + 1:
            self._say(14, position, event.account_id, "the versions of a wallet have a gap or run backwards")
        wallet.version = event.originator_version
        wallet.move(event)
        if isinstance(event, HoldPlaced):
            if event.hold_id in self._holds:
                self._say(5, position, event.hold_id, "a hold is placed while it is open")
            self._holds[event.hold_id] = (event.account_id, event.amount)
            wallet.held += event.amount
        elif isinstance(event, HoldReleased):
            wallet.held -= self._resolve(position, event, event.released)
        elif isinstance(event, HoldCaptured):
            wallet.held -= self._resolve(position, event, event.captured + event.released)
        if self._whole and wallet.is_overdrawn:
            self._say(3, position, event.account_id, "a bucket, the balance or the withdrawable amount is below zero")

    def _resolve(self, position: int, event: HoldCaptured | HoldReleased, amount: int) -> int:
        """Take a hold off its wallet; returns its amount."""
        account_id, placed = self._holds.pop(event.hold_id, ("", 0))
        if not account_id:
            if self._whole:
                self._say(5, position, event.hold_id, "a hold is resolved that is not open")
            return amount if not self._whole else 0
        if account_id != event.account_id or placed != amount:
            self._say(5, position, event.hold_id, f"{amount} micro-USD are captured and released of a hold of {placed}")
        return placed

    # --- invites -----------------------------------------------------------------------------------------------------

    def _follow_invite(
        self, position: int, event: InviteCodeCreated | InviteCodeRedeemed | InviteCodeDeactivated
    ) -> None:
        invite = self._invites.get(event.code)
        if isinstance(event, InviteCodeCreated):
            if invite is not None:
                self._say(11, position, event.code, "an invite code is made twice")
            self._invites[event.code] = _Invite(event)
        elif invite is None:
            if self._whole:
                self._say(11, position, event.code, "an invite code is used or ended that was never made")
        elif isinstance(event, InviteCodeDeactivated):
            invite.is_active = False
        else:
            created = invite.created
            is_past = created.expires_at is not None and created.expires_at <= event.timestamp
            if not invite.is_active or is_past:
                self._say(11, position, event.code, "an invite code is used that is not valid any more")
            if event.account_id in invite.uses:
                self._say(11, position, event.code, "an account uses an invite code twice")
            invite.uses.add(event.account_id)
            if event.use_number != len(invite.uses) or len(invite.uses) > created.max_uses:
                self._say(11, position, event.code, "an invite code is used more often than it allows")
            if event.amount != created.amount:
                self._say(11, position, event.code, "the use of an invite code credits another amount")

    # --- the journal -------------------------------------------------------------------------------------------------

    def _follow_entry(self, position: int, event: JournalEntryPosted) -> None:
        if event.originator_version != 1 or event.originator_id != JournalEntry.id_of(event.entry_key):
            self._say(6, position, event.entry_key, "a journal entry is posted twice, or under another's id")
        for line in event.postings:
            if line.direction == "debit":
                self._debits += line.amount
            else:
                self._credits += line.amount
