"""What an auditor must be told, folded from the events in plain Python; it shares no code with the product."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from adapters.postgres.writer import LedgerWriter
from domain.errors import InsufficientFunds
from tests.support.ledger_commands import admit, dispatch, grant, release, settle
from tests.support.ledger_tables import Event

DEBIT_NORMAL = ("1", "5")
CREDIT_CODES = ("2000", "2005")
EARNING_CODES = ("2100", "2110", "2120")


class Trade:
    """Random business of a few accounts, the same for the same seed; it can go on as long as one likes."""

    def __init__(self, writer: LedgerWriter, seed: int) -> None:
        self._writer = writer
        self._random = random.Random(seed)
        self.accounts = [f"acct_{number}" for number in range(4)]
        self._open: list[tuple[str, UUID, int]] = []

    def go_on(self, operations: int) -> None:
        for _ in range(operations):
            self._random.choice((self._grant, self._admit, self._admit, self._end, self._end))()

    def _grant(self) -> None:
        self._writer.execute(grant(self._random.choice(self.accounts), self._random.randint(1, 5_000)))

    def _admit(self) -> None:
        account, amount, request_id = self._random.choice(self.accounts), self._random.randint(1, 2_000), uuid4()
        try:
            self._writer.execute(admit(account, amount, request_id))
        except InsufficientFunds:
            return
        self._open.append((account, request_id, amount))

    def _end(self) -> None:
        if not self._open:
            return
        account, request_id, amount = self._open.pop(self._random.randrange(len(self._open)))
        if self._random.random() < 0.3:
            self._writer.execute(release(account, request_id))
            return
        provider = self._random.choice([*self.accounts, ""])
        self._writer.execute(dispatch(request_id, provider=provider))
        cost = self._random.randint(0, amount)
        self._writer.execute(settle(account, request_id, cost, fee_percent=self._random.choice((0, 10))))


def entries_of(log: list[Event]) -> list[Event]:
    return [event for event in log if event.name == "JournalEntryPosted"]


def postings_of(event: Event) -> list[tuple[str, str, int, int]]:
    """(code, sub-account, debit, credit)"""
    return [
        (
            posting["account_code"],
            posting["sub_account"],
            posting["amount"] if posting["direction"] == "debit" else 0,
            posting["amount"] if posting["direction"] == "credit" else 0,
        )
        for posting in event.payload["postings"]
    ]


def trial_balance(entries: list[Event]) -> dict[str, tuple[int, int, int]]:
    """Code to debits, credits and the balance on its normal side."""
    debits: Counter[str] = Counter()
    credits_: Counter[str] = Counter()
    for event in entries:
        for code, _, debit, credit in postings_of(event):
            debits[code] += debit
            credits_[code] += credit
    return {
        code: (
            debits[code],
            credits_[code],
            debits[code] - credits_[code] if code[0] in DEBIT_NORMAL else credits_[code] - debits[code],
        )
        for code in debits | credits_
    }


def held(log: list[Event], position: int, account: str | None = None) -> int:
    """The sum of the open holds at a position."""
    open_: dict[str, int] = {}
    for event in log:
        if event.position > position or (account is not None and event.payload.get("account_id") != account):
            continue
        if event.name == "HoldPlaced":
            open_[event.payload["hold_id"]] = event.payload["amount"]
        elif event.name in ("HoldCaptured", "HoldReleased"):
            del open_[event.payload["hold_id"]]
    return sum(open_.values())


def standing(log: list[Event], account: str, position: int) -> tuple[int, int, int]:
    """(balance, held, withdrawable) of an account at a position."""
    moved: defaultdict[str, int] = defaultdict(int)
    for event in entries_of(log):
        if event.position <= position:
            for code, sub_account, debit, credit in postings_of(event):
                if sub_account == account:
                    moved[code] += credit - debit
    credits_ = sum(moved[code] for code in CREDIT_CODES)
    earnings = sum(moved[code] for code in EARNING_CODES)
    on_hold = held(log, position, account)
    return credits_ + earnings + moved["2190"], on_hold, earnings - max(0, on_hold - credits_)


def position_at(log: list[Event], at: datetime) -> int:
    return max((event.position for event in log if event.recorded_at <= at), default=0)


def effective_at(event: Event) -> datetime:
    return datetime.fromisoformat(str(event.payload["effective_at"]))


def shown(found: Any) -> dict[str, tuple[int, int, int]]:
    """A trial balance of the product in the fold's form."""
    return {line.code: (line.debit_micro_usd, line.credit_micro_usd, line.balance_micro_usd) for line in found.lines}
