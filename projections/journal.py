"""journal_lines: every posting, and the trial balance over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from domain.eventsourced import DomainEvent
from domain.journal import CHART, JournalEntryPosted
from projections.page import RECORDED_AT, Connection, Page
from projections.projection import copy_rows

COPY = """
COPY journal_lines (position, line, entry_id, entry_key, kind, reference, effective_at, recorded_at, account_code,
                    sub_account, debit_micro_usd, credit_micro_usd) FROM STDIN (FORMAT BINARY)
"""
TYPES = (
    "int8",
    "int4",
    "uuid",
    "text",
    "text",
    "text",
    "timestamptz",
    RECORDED_AT,
    "text",
    "text",
    "int8",
    "int8",
)

TRIAL_BALANCE = """
SELECT account_code, sum(debit_micro_usd)::bigint, sum(credit_micro_usd)::bigint FROM journal_lines
GROUP BY account_code ORDER BY account_code
"""


class TrialBalanceLine(NamedTuple):
    """One account of the chart; ``balance_micro_usd`` is on its normal side."""

    code: str
    name: str
    account_class: str
    debit_micro_usd: int
    credit_micro_usd: int
    balance_micro_usd: int


class JournalLines:
    name = "journal_lines"
    events: Sequence[type[DomainEvent]] = (JournalEntryPosted,)
    only_adds = True

    def apply(self, connection: Connection, page: Page) -> None:
        rows: list[tuple[Any, ...]] = []
        for position, recorded_at, event in page.of(JournalEntryPosted):
            for line, posting in enumerate(event.postings):
                debit = posting.amount if posting.direction == "debit" else 0
                rows.append(
                    (
                        position,
                        line,
                        event.originator_id,
                        event.entry_key,
                        event.kind,
                        event.reference,
                        event.effective_at,
                        recorded_at,
                        posting.account_code,
                        posting.sub_account,
                        debit,
                        posting.amount - debit,
                    )
                )
        copy_rows(connection, COPY, TYPES, rows)


def trial_balance(connection: Connection) -> list[TrialBalanceLine]:
    """The trial balance, added up from every line as far as this projection has read."""
    return [balance_line(*row) for row in connection.execute(TRIAL_BALANCE)]


def balance_line(code: str, debit: int, credit: int) -> TrialBalanceLine:
    """An account's totals in micro-USD with its balance on the normal side."""
    account = CHART[code]
    balance = debit - credit if account.debit_normal else credit - debit
    return TrialBalanceLine(code, account.name, account.account_class, debit, credit, balance)
