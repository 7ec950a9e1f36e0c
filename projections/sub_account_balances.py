"""sub_account_balances: the running totals of each account of the chart by whom they concern."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from domain.eventsourced import DomainEvent
from domain.journal import JournalEntryPosted
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

UPSERT = """
INSERT INTO sub_account_balances AS t (account_code, sub_account, debit_micro_usd, credit_micro_usd)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[])
ON CONFLICT (account_code, sub_account) DO UPDATE SET debit_micro_usd = t.debit_micro_usd + excluded.debit_micro_usd,
    credit_micro_usd = t.credit_micro_usd + excluded.credit_micro_usd
"""

OF_SUB_ACCOUNT = """
SELECT account_code, debit_micro_usd, credit_micro_usd FROM sub_account_balances
WHERE sub_account = %s ORDER BY account_code
"""
"""Everything that the books say of one account or machine."""


class SubAccountBalances:
    """Platform accounts have the empty sub-account."""

    name = "sub_account_balances"
    events: Sequence[type[DomainEvent]] = (JournalEntryPosted,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[str, str]] = defaultdict(list)
        for _, _, event in page.of(JournalEntryPosted):
            for posting in event.postings:
                debit = posting.amount if posting.direction == "debit" else 0
                sums[posting.account_code, posting.sub_account].append((debit, posting.amount - debit))
        if sums:
            connection.execute(UPSERT, columns_of(sums))
