"""trial_balance_marks: what each stretch of the log debited and credited, so that a past trial balance is a short sum.

A stretch is STRETCH_POSITIONS positions. A trial balance adds up the whole stretches before it and the lines after
them. Open holds, which are no postings, are kept beside the accounts under the code HOLDS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from domain.eventsourced import DomainEvent
from domain.journal import JournalEntryPosted
from domain.wallet import HoldCaptured, HoldPlaced, HoldReleased
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

STRETCH_POSITIONS = 5_000
"""Changing it needs a rebuild of the table."""

HOLDS = "holds"

ADD = """
INSERT INTO trial_balance_marks (stretch, account_code, debit_micro_usd, credit_micro_usd)
SELECT * FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[])
ON CONFLICT (stretch, account_code) DO UPDATE SET
    debit_micro_usd = trial_balance_marks.debit_micro_usd + excluded.debit_micro_usd,
    credit_micro_usd = trial_balance_marks.credit_micro_usd + excluded.credit_micro_usd
"""
"""Added to and not set: the tracking row of the same transaction lets every event count once."""


class TrialBalanceMarks:
    name = "trial_balance_marks"
    events: Sequence[type[DomainEvent]] = (JournalEntryPosted, HoldPlaced, HoldCaptured, HoldReleased)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[int, str]] = defaultdict(list)
        for position, _, entry in page.of(JournalEntryPosted):
            stretch = _stretch_of(position)
            for posting in entry.postings:
                debit = posting.amount if posting.direction == "debit" else 0
                sums[stretch, posting.account_code].append((debit, posting.amount - debit))
        for position, _, placed in page.of(HoldPlaced):
            sums[_stretch_of(position), HOLDS].append((0, placed.amount))
        for position, _, captured in page.of(HoldCaptured):
            sums[_stretch_of(position), HOLDS].append((captured.captured + captured.released, 0))
        for position, _, released in page.of(HoldReleased):
            sums[_stretch_of(position), HOLDS].append((released.released, 0))
        if sums:
            connection.execute(ADD, columns_of(sums))


def _stretch_of(position: int) -> int:
    return (position - 1) // STRETCH_POSITIONS
