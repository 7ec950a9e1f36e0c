"""The statement of one account: opening balance, every entry that moved it, closing balance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from domain.accounts import Account
from domain.errors import InvalidRequest, NotFound
from domain.machines import ProviderMachine
from domain.wallet import Wallet
from projections.audit import holds
from projections.audit.cursors import read_cursor, write_cursor
from projections.audit.instants import Connection, Stretch, at_position
from projections.audit.sources import LINES, Sources

_MOVED = """
       coalesce(sum(credit_micro_usd - debit_micro_usd) FILTER (WHERE account_code IN ('2000', '2005')), 0)::bigint,
       coalesce(sum(credit_micro_usd - debit_micro_usd) FILTER (WHERE account_code IN ('2100', '2110', '2120')),
                0)::bigint,
       coalesce(sum(credit_micro_usd - debit_micro_usd) FILTER (WHERE account_code = '2190'), 0)::bigint
FROM lines
WHERE sub_account = %(account_id)s AND sub_account <> ''
    AND account_code IN ('2000', '2005', '2100', '2110', '2120', '2190')
    AND position > %(after)s AND position <= %(upto)s
"""

SUM = LINES + "SELECT " + _MOVED
"""What moved an account's credits, earnings and unclaimed earnings in a stretch of the log."""

PAGE = (
    LINES
    + "SELECT position, entry_id, effective_at, recorded_at, kind, reference, "
    + _MOVED
    + " GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY position LIMIT %(limit)s"
)
"""The same, entry by entry."""

IS_KNOWN = "SELECT EXISTS (SELECT FROM events WHERE originator_id = ANY(%s))"


class StatementLine(msgspec.Struct, frozen=True):
    """One entry; the amount is positive when the account gained."""

    entry_id: UUID
    position: int
    effective_at: datetime
    recorded_at: datetime
    kind: str
    reference: str
    amount_micro_usd: int
    balance_after_micro_usd: int
    withdrawable_after_micro_usd: int


class Standing(msgspec.Struct, frozen=True):
    """What an account has at a position. ``balance`` is what the books owe to it, open holds included; what it can
    spend is the balance less ``held``."""

    position: int
    balance_micro_usd: int
    held_micro_usd: int
    withdrawable_micro_usd: int


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """``opening`` and ``closing`` are those of the whole statement; ``lines`` are one page of it."""

    account_id: str
    opening: Standing
    closing: Standing
    final: bool
    lines: list[StatementLine]
    next_cursor: str | None


class _Purse(NamedTuple):
    credits: int
    earnings: int
    unclaimed: int
    held: int

    @property
    def balance(self) -> int:
        return self.credits + self.earnings + self.unclaimed

    @property
    def withdrawable(self) -> int:
        return self.earnings - max(0, self.held - self.credits)

    def plus(self, moved: Sequence[int], held: int) -> _Purse:
        return _Purse(self.credits + moved[0], self.earnings + moved[1], self.unclaimed + moved[2], self.held + held)

    def at(self, position: int) -> Standing:
        return Standing(position, self.balance, self.held, self.withdrawable)


def statement(
    connection: Connection, account_id: str, stretch: Stretch, sources: Sources, *, cursor: str, limit: int
) -> Statement:
    """One page of an account's statement. A cursor keeps the whole statement where its first page found it.

    Raises:
        NotFound: nothing was ever recorded for the account.
        InvalidRequest: the cursor is not from here.
    """
    wallet_id = Wallet.id_of(account_id)
    known = [Account.id_of(account_id), wallet_id, ProviderMachine.id_of(account_id)]
    row = connection.execute(IS_KNOWN, (known,)).fetchone()
    if row is None or not row[0]:
        raise NotFound("There is no such account or machine.")
    start, begin, end = stretch.after.position, stretch.after.position, stretch.upto.position
    if cursor:
        start, begin, end = read_cursor(cursor, 3)
        at_position(connection, end)
        if not start <= begin <= end:
            raise InvalidRequest("'cursor' is not one that this endpoint gave out.", param="cursor")

    def purse_at(position: int) -> _Purse:
        parameters = _parameters(account_id, 0, position, sources)
        moved = connection.execute(SUM, parameters).fetchone()
        assert moved is not None
        held = holds.held_at(connection, account_id, wallet_id, position, sources)
        return _Purse(moved[0], moved[1], moved[2], held)

    parameters = _parameters(account_id, begin, end, sources) | {"limit": limit + 1}
    rows = connection.execute(PAGE, parameters).fetchall()
    page, more = rows[:limit], len(rows) > limit
    opening = purse_at(start)
    running = opening if begin == start else purse_at(begin)
    upto = page[-1][0] if page else begin
    changes = holds.changes(connection, account_id, wallet_id, begin, upto, sources)
    return Statement(
        account_id=account_id,
        opening=opening.at(start),
        closing=purse_at(end).at(end),
        final=stretch.upto.final or bool(cursor),
        lines=list(_running(page, running, changes)),
        next_cursor=write_cursor(start, upto, end) if more else None,
    )


def _running(
    page: Sequence[Sequence[Any]], purse: _Purse, changes: Iterator[tuple[int, int]]
) -> Iterator[StatementLine]:
    change = next(changes, None)
    for position, entry_id, effective_at, recorded_at, kind, reference, *moved in page:
        held = 0
        while change is not None and change[0] <= position:
            held += change[1]
            change = next(changes, None)
        purse = purse.plus(moved, held)
        yield StatementLine(
            entry_id,
            position,
            effective_at,
            recorded_at,
            kind,
            reference,
            sum(moved),
            purse.balance,
            purse.withdrawable,
        )


def _parameters(account_id: str, after: int, upto: int, sources: Sources) -> dict[str, Any]:
    return {"account_id": account_id, "after": after, "upto": upto, "lines_read": sources.lines_read}
