"""ledger_lines: the movements of each account's money, in the shape of the original's ledger (money, 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domain.eventsourced import DomainEvent
from domain.journal import BUCKET_CODES, JournalEntryPosted
from projections.page import Connection, Page
from projections.projection import copy_rows

COPY = """
COPY ledger_lines (account_id, position, type, amount_micro_usd, balance_after_micro_usd, reference, created_at)
FROM STDIN (FORMAT BINARY)
"""
TYPES = ("text", "int8", "text", "int8", "int8", "text", "timestamptz")

LAST_BALANCES = """
SELECT asked.account_id, last.balance_after_micro_usd FROM unnest(%s::text[]) AS asked (account_id)
CROSS JOIN LATERAL (
    SELECT balance_after_micro_usd FROM ledger_lines l WHERE l.account_id = asked.account_id
    ORDER BY position DESC LIMIT 1
) AS last
"""

OF_ACCOUNT = """
SELECT position, account_id, type, amount_micro_usd, balance_after_micro_usd, reference, created_at FROM ledger_lines
WHERE account_id = %s AND position < %s ORDER BY position DESC LIMIT %s
"""
"""An account's movements, newest first, from before a position. The position is also the line's id."""

_BUCKETS = frozenset(BUCKET_CODES.values())
_SETTLEMENT_TYPES = {"2100": "payout", "2110": "referral_reward"}


class LedgerLines:
    """A line is what one journal entry does to one account's money. Holds are not movements and have no line."""

    name = "ledger_lines"
    events: Sequence[type[DomainEvent]] = (JournalEntryPosted,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        movements = [
            (account_id, position, type_, amount, event.reference, event.timestamp)
            for position, _, event in page.of(JournalEntryPosted)
            for account_id, type_, amount in movements_of(event)
        ]
        accounts = sorted({movement[0] for movement in movements})
        balances = dict.fromkeys(accounts, 0)
        balances.update(connection.execute(LAST_BALANCES, (accounts,)).fetchall())
        rows: list[tuple[Any, ...]] = []
        for account_id, position, type_, amount, reference, created_at in movements:
            balances[account_id] = after = balances[account_id] + amount
            rows.append((account_id, position, type_, amount, after, reference, created_at))
        copy_rows(connection, COPY, TYPES, rows)


def movements_of(event: JournalEntryPosted) -> list[tuple[str, str, int]]:
    """What an entry does to each account: its id, the type of the line and the signed amount in micro-USD."""
    moved: dict[str, tuple[str, int]] = {}
    for posting in event.postings:
        if posting.account_code in _BUCKETS:
            code, amount = moved.get(posting.sub_account, (posting.account_code, 0))
            moved[posting.sub_account] = (code, amount - posting.signed)
    return [
        (account, _type_of(event.kind, code, amount), amount) for account, (code, amount) in moved.items() if amount
    ]


def _type_of(kind: str, code: str, amount: int) -> str:
    """The original's name for a movement; where it has none, the entry's own kind."""
    if kind != "settlement":
        return kind
    return "charge" if amount < 0 else _SETTLEMENT_TYPES.get(code, kind)
