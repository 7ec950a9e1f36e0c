"""journal_lines: every posting, and the trial balance over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from domain.journal import CHART, JournalEntryPosted
from projections.runner import Connection, Recorded

INSERT = """
INSERT INTO journal_lines (position, line, entry_id, entry_key, kind, reference, effective_at, recorded_at,
                           account_code, sub_account, debit_micro_usd, credit_micro_usd)
SELECT * FROM unnest(%s::bigint[], %s::int[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],
                     %s::timestamptz[], %s::text[], %s::text[], %s::bigint[], %s::bigint[])
ON CONFLICT (position, line) DO NOTHING
"""

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
    topics: Sequence[str] = (JournalEntryPosted.TOPIC,)

    def apply(self, connection: Connection, batch: Sequence[Recorded]) -> None:
        rows: list[tuple[Any, ...]] = []
        for position, entry_id, recorded_at, event in batch:
            assert isinstance(event, JournalEntryPosted)
            for line, posting in enumerate(event.postings):
                debit = posting.amount if posting.direction == "debit" else 0
                rows.append(
                    (
                        position,
                        line,
                        entry_id,
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
        connection.execute(INSERT, [list(column) for column in zip(*rows, strict=True)])


def trial_balance(connection: Connection) -> list[TrialBalanceLine]:
    """The trial balance as far as this projection has read."""
    lines = []
    for code, debit, credit in connection.execute(TRIAL_BALANCE):
        account = CHART[code]
        balance = debit - credit if account.debit_normal else credit - debit
        lines.append(TrialBalanceLine(code, account.name, account.account_class, debit, credit, balance))
    return lines
