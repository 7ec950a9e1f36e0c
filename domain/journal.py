"""The journal: chart of accounts, postings of each operation, and the entry that is written once (money, section 12).

Debit-normal classes are assets and expenses, credit-normal ones liabilities and revenue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import msgspec

from domain.errors import InvariantViolated
from domain.eventsourced import Aggregate, DomainEvent
from domain.wallet import Split


class AccountCode(NamedTuple):
    name: str
    account_class: str

    @property
    def debit_normal(self) -> bool:
        return self.account_class in ("asset", "expense")


CHART: Mapping[str, AccountCode] = {
    "1000": AccountCode("Stripe clearing", "asset"),
    "1010": AccountCode("Stripe platform balance", "asset"),
    "1020": AccountCode("Operating bank account", "asset"),
    "1150": AccountCode("Payouts in transit", "asset"),
    "1200": AccountCode("Receivable from account", "asset"),
    "1300": AccountCode("Disputed funds held by Stripe", "asset"),
    "2000": AccountCode("Customer credits, purchased", "liability"),
    "2005": AccountCode("Customer credits, promotional", "liability"),
    "2100": AccountCode("Provider payable", "liability"),
    "2110": AccountCode("Referral payable", "liability"),
    "2120": AccountCode("Reward payable", "liability"),
    "2190": AccountCode("Unclaimed provider earnings", "liability"),
    "2300": AccountCode("Withdrawals payable", "liability"),
    "2310": AccountCode("Withdrawal fee and dust, not yet earned", "liability"),
    "4000": AccountCode("Platform fee revenue", "revenue"),
    "4010": AccountCode("Payout fee revenue", "revenue"),
    "4020": AccountCode("Rounding gain", "revenue"),
    "4090": AccountCode("Forfeited balances", "revenue"),
    "5000": AccountCode("Promotional credit expense", "expense"),
    "5010": AccountCode("Reward expense", "expense"),
    "5020": AccountCode("Stripe fees", "expense"),
    "5030": AccountCode("Dispute and bad-debt loss", "expense"),
    "5040": AccountCode("Referral expense", "expense"),
}

BUCKET_CODES: Mapping[str, str] = {
    "promotional": "2005",
    "purchased": "2000",
    "reward": "2120",
    "referral": "2110",
    "provider": "2100",
}
"""The liability that mirrors each wallet bucket; its sub-account is the account id."""


class Posting(msgspec.Struct, frozen=True):
    """One line of an entry. ``direction`` is debit or credit; the amount is micro-USD above zero."""

    account_code: str
    sub_account: str
    direction: str
    amount: int

    @property
    def signed(self) -> int:
        return self.amount if self.direction == "debit" else -self.amount


def debit(code: str, sub_account: str, amount: int) -> Posting:
    return Posting(code, sub_account, "debit", amount)


def credit(code: str, sub_account: str, amount: int) -> Posting:
    return Posting(code, sub_account, "credit", amount)


def balanced(postings: Iterable[Posting]) -> tuple[Posting, ...]:
    """The postings that move something, checked to be an entry.

    Raises:
        InvariantViolated: debits differ from credits, fewer than two lines, a negative amount or an unknown account.
    """
    lines = tuple(line for line in postings if line.amount != 0)
    if len(lines) < 2 or any(line.amount < 0 or line.account_code not in CHART for line in lines):
        raise InvariantViolated("a journal entry has at least two lines above zero on accounts of the chart")
    if sum(line.signed for line in lines) != 0:
        raise InvariantViolated("a journal entry's debits and credits differ")
    return lines


def promotional_credit(account_id: str, amount: int) -> tuple[Posting, ...]:
    return balanced((debit("5000", "", amount), credit("2005", account_id, amount)))


def settlement(
    *,
    consumer: str,
    split: Split,
    provider_account: str,
    machine_id: str,
    provider_amount: int,
    platform_amount: int,
) -> tuple[Posting, ...]:
    """The consumer's buckets pay the provider and the platform.

    An unlinked machine's share waits on account 2190 under the machine, until somebody claims it.
    """
    payee = credit("2100", provider_account, provider_amount)
    if not provider_account:
        payee = credit("2190", machine_id, provider_amount)
    spent = (debit(BUCKET_CODES[bucket], consumer, getattr(split, bucket)) for bucket in BUCKET_CODES)
    return balanced((*spent, payee, credit("4000", "", platform_amount)))


class JournalEntryPosted(DomainEvent, frozen=True, kw_only=True):
    """The one event of a journal entry."""

    TOPIC: ClassVar[str] = "JournalEntry.JournalEntryPosted"
    entry_key: str
    kind: str
    effective_at: datetime
    postings: tuple[Posting, ...]
    reference: str
    metadata: dict[str, str]
    reverses_entry_id: UUID | None

    def apply(self, aggregate: Any) -> None:
        aggregate.entry_key = self.entry_key


class JournalEntry(Aggregate):
    """Written once and never changed; a correction is a new entry that reverses it."""

    KIND = "JournalEntry"

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.entry_key = ""

    def check(self) -> None:
        if self.version > 1:
            raise InvariantViolated(f"journal entry {self.entry_key} was posted twice")
