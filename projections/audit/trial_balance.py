"""The trial balance at any past position or time, by what was known or by what was true."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from domain.journal import CHART
from projections.audit.instants import AsOf, Connection, at_time
from projections.audit.marks import HOLDS, STRETCH_POSITIONS
from projections.audit.sources import HOLD_EVENTS, LINES, Sources
from projections.audit.tree import root_at

MARKS = """
SELECT account_code, sum(debit_micro_usd)::bigint, sum(credit_micro_usd)::bigint FROM trial_balance_marks
WHERE stretch < %(stretches)s GROUP BY account_code
"""
"""The whole stretches, holds among them."""

REST = (
    LINES
    + """
SELECT account_code, sum(debit_micro_usd)::bigint, sum(credit_micro_usd)::bigint FROM lines
WHERE position > %(after)s AND position <= %(upto)s GROUP BY account_code
"""
)
"""The lines after the last whole stretch."""

DATED_APART = (
    LINES
    + """
SELECT account_code, sum(CASE WHEN position > %(position)s THEN debit_micro_usd ELSE -debit_micro_usd END)::bigint,
       sum(CASE WHEN position > %(position)s THEN credit_micro_usd ELSE -credit_micro_usd END)::bigint FROM lines
WHERE effective_at <> recorded_at AND position <= %(known)s
    AND ((position > %(position)s AND effective_at <= %(at)s) OR (position <= %(position)s AND effective_at > %(at)s))
GROUP BY account_code
"""
)
"""What a view by effective date adds to the view by recorded time, and what it takes away."""

HOLDS_BETWEEN = f"""
SELECT coalesce(sum(change_micro_usd), 0)::bigint FROM ({HOLD_EVENTS}) h
WHERE position > %(after)s AND position <= %(upto)s
"""  # noqa: S608  # joined from constants


class TrialBalanceLine(msgspec.Struct, frozen=True):
    """One account of the chart; ``balance_micro_usd`` is on its normal side."""

    code: str
    name: str
    account_class: str = msgspec.field(name="class")
    debit_micro_usd: int
    credit_micro_usd: int
    balance_micro_usd: int


class TrialBalance(msgspec.Struct, frozen=True, kw_only=True):
    """``position`` is where the answer can be asked for again; ``final`` that it can never differ.

    ``trial_balance_sha256`` covers basis and lines, as ``digest_of`` says. ``chain_hash`` is the Merkle root of the
    log up to the position, null while the tree has not got that far.
    """

    at: datetime
    position: int
    basis: str
    final: bool
    lines: list[TrialBalanceLine]
    total_debit_micro_usd: int
    total_credit_micro_usd: int
    balanced: bool
    committed_holds_micro_usd: int
    trial_balance_sha256: str
    chain_hash: str | None


def recorded(connection: Connection, as_of: AsOf, sources: Sources) -> TrialBalance:
    """Everything that was recorded up to a position."""
    debits, credits_ = _sums(connection, as_of.position, sources)
    return _answer(connection, as_of.at, as_of.position, "recorded", as_of.final, debits, credits_)


def effective(connection: Connection, at: datetime, known: AsOf, sources: Sources) -> TrialBalance:
    """Everything with an effective date up to a time, as it was known at a position.

    Raises:
        InvalidRequest: the time lies in the future.
    """
    position = min(at_time(connection, at).position, known.position)
    debits, credits_ = _sums(connection, position, sources)
    parameters = {"lines_read": sources.lines_read, "position": position, "known": known.position, "at": at}
    for code, debit, credit in connection.execute(DATED_APART, parameters):
        debits[code] += debit
        credits_[code] += credit
    return _answer(connection, at, known.position, "effective", known.final, debits, credits_)


def digest_of(basis: str, lines: Iterable[TrialBalanceLine]) -> str:
    """SHA-256 of the basis and of code, debits and credits of every line, as compact JSON."""
    content = {"basis": basis, "lines": [[line.code, line.debit_micro_usd, line.credit_micro_usd] for line in lines]}
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _sums(connection: Connection, position: int, sources: Sources) -> tuple[Counter[str], Counter[str]]:
    """Debits and credits by account, and by HOLDS, up to a position."""
    stretches = min(position, sources.marks_read) // STRETCH_POSITIONS
    after = stretches * STRETCH_POSITIONS
    span: dict[str, Any] = {"after": after, "upto": position, "lines_read": sources.lines_read}
    debits: Counter[str] = Counter()
    credits_: Counter[str] = Counter()
    for statement, parameters in ((MARKS, {"stretches": stretches}), (REST, span)):
        for code, debit, credit in connection.execute(statement, parameters):
            debits[code] += debit
            credits_[code] += credit
    row = connection.execute(HOLDS_BETWEEN, span).fetchone()
    assert row is not None
    credits_[HOLDS] += row[0]
    return debits, credits_


def _answer(
    connection: Connection,
    at: datetime,
    position: int,
    basis: str,
    final: bool,
    debits: Counter[str],
    credits_: Counter[str],
) -> TrialBalance:
    holds = credits_.pop(HOLDS, 0) - debits.pop(HOLDS, 0)
    lines = []
    for code in sorted(debits.keys() | credits_.keys()):
        account, debit, credit = CHART[code], debits[code], credits_[code]
        balance = debit - credit if account.debit_normal else credit - debit
        if debit or credit:
            lines.append(TrialBalanceLine(code, account.name, account.account_class, debit, credit, balance))
    total_debit, total_credit = debits.total(), credits_.total()
    return TrialBalance(
        at=at,
        position=position,
        basis=basis,
        final=final,
        lines=lines,
        total_debit_micro_usd=total_debit,
        total_credit_micro_usd=total_credit,
        balanced=total_debit == total_credit,
        committed_holds_micro_usd=holds,
        trial_balance_sha256=digest_of(basis, lines),
        chain_hash=root_at(connection, position),
    )
