"""trial_balance: the running totals of each account of the chart, so that the books are summed up at once.

``projections.journal`` has the lines behind them, which also tell the totals of any earlier position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from domain.eventsourced import DomainEvent
from domain.journal import JournalEntryPosted
from projections.journal import TrialBalanceLine, balance_line
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

UPSERT = """
INSERT INTO trial_balance AS t (account_code, debit_micro_usd, credit_micro_usd)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[])
ON CONFLICT (account_code) DO UPDATE SET debit_micro_usd = t.debit_micro_usd + excluded.debit_micro_usd,
    credit_micro_usd = t.credit_micro_usd + excluded.credit_micro_usd
"""

CURRENT = "SELECT account_code, debit_micro_usd, credit_micro_usd FROM trial_balance ORDER BY account_code"


class TrialBalance:
    name = "trial_balance"
    events: Sequence[type[DomainEvent]] = (JournalEntryPosted,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[str]] = defaultdict(list)
        for _, _, event in page.of(JournalEntryPosted):
            for posting in event.postings:
                debit = posting.amount if posting.direction == "debit" else 0
                sums[posting.account_code,].append((debit, posting.amount - debit))
        if sums:
            connection.execute(UPSERT, columns_of(sums))


def current_trial_balance(connection: Connection) -> list[TrialBalanceLine]:
    """The trial balance as far as this projection has read: as many rows as the chart has accounts in use."""
    return [balance_line(*row) for row in connection.execute(CURRENT)]
