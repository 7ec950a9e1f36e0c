"""The doctor: every invariant of the books, checked on a live database with read access only.

It reads one snapshot, so it works beside a running coordinator: the log once, in binary pages and in memory that does
not grow with it, and then the read models against what the log says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import psycopg

from domain import events
from domain.invariants import (
    INVARIANTS,
    EarningTotals,
    Invariant,
    JournalTotals,
    LogCheck,
    Logged,
    UsageTotals,
    Violation,
)
from projections.snapshot_check import SnapshotCheck

PAGE_EVENTS = 5_000

HEAD = "SELECT position FROM ledger_head"
PAGE = """
SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events
WHERE position > %s ORDER BY position LIMIT %s
"""
GAP_IN_VERSIONS = """
SELECT originator_id::text FROM events GROUP BY originator_id
HAVING count(*) <> max(originator_version) OR min(originator_version) <> 1 ORDER BY originator_id LIMIT 1
"""
"""The first aggregate whose versions are not 1, 2, 3 and so on; each is there at most once by the table's own key."""

BALANCES = """
SELECT account_id, wallet_version, balance_micro_usd, withdrawable_micro_usd, held_micro_usd FROM wallet_balances
"""
OPEN_REQUESTS = "SELECT request_id::text, account_id, reserved_micro_usd FROM open_requests"
USAGE = """
SELECT account_id, count(*), sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, sum(cost_micro_usd)::bigint
FROM usage_entries GROUP BY account_id
"""
EARNINGS = """
SELECT machine_id, count(*), sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, sum(amount_micro_usd)::bigint
FROM provider_earnings GROUP BY machine_id
"""
JOURNAL = """
SELECT account_code, count(*), sum(debit_micro_usd)::bigint, sum(credit_micro_usd)::bigint
FROM journal_lines GROUP BY account_code
"""
READ_UPTO = "SELECT name, position FROM projection_tracking"

Connection = psycopg.Connection[tuple[Any, ...]]
Check = Callable[[Connection], str | None]
"""A further check of an invariant inside of the doctor's snapshot: what is wrong, or None."""

NEEDS_THE_WHOLE_LOG = (3, 12)
"""Invariants about balances and sums from the beginning, of which the newest events say nothing."""


class Finding(msgspec.Struct, frozen=True):
    """What the doctor says of one invariant. ``state`` is ``holds``, ``violated`` or ``does not apply``.

    ``violations`` counts them all, ``first`` is the one that comes first in the log.
    """

    number: int
    says: str
    state: str
    why: str = ""
    violations: int = 0
    first: Violation | None = None


class Diagnosis(msgspec.Struct, frozen=True):
    """``position`` is the head of the snapshot, ``events`` how many were read, ``whole`` whether those were all."""

    position: int
    events: int
    whole: bool
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return all(finding.state != "violated" for finding in self.findings)


class _Findings:
    def __init__(self) -> None:
        self._first: dict[int, Violation] = {}
        self._count: dict[int, int] = {}
        self._unchecked: dict[int, str] = {}

    def report(self, violation: Violation) -> None:
        self._first.setdefault(violation.invariant, violation)
        self._count[violation.invariant] = self._count.get(violation.invariant, 0) + 1

    def leave_out(self, number: int, why: str) -> None:
        self._unchecked.setdefault(number, why)

    def of(self, invariant: Invariant) -> Finding:
        number, says = invariant.number, invariant.says
        if number in self._first:
            return Finding(number, says, "violated", "", self._count[number], self._first[number])
        why = invariant.because or self._unchecked.get(number, "")
        return Finding(number, says, "does not apply" if why else "holds", why)


def examine(connection: Connection, *, newest: int | None = None, more: Mapping[int, Check] | None = None) -> Diagnosis:
    """Check everything that applies, in one snapshot. The connection needs SELECT and has no open transaction.

    ``newest`` limits it to that many events at the end of the log. ``more`` are checks of an invariant that other parts
    of the program can do, such as a replay for number 13.
    """
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    findings = _Findings()
    with connection.transaction():
        (head,) = _row(connection, HEAD)
        after = max(0, head - newest) if newest is not None else 0
        log = LogCheck(findings.report, after_position=after, whole=after == 0)
        totals = _Totals(connection)
        snapshots = None if after else SnapshotCheck(connection, findings.report)
        is_read = _read_log(connection, log, totals, snapshots, findings)
        if not is_read:
            for number in range(1, 14):
                findings.leave_out(number, f"the log cannot be read beyond position {log.position}")
        elif log.position != head:
            findings.report(Violation(14, log.position, "log", f"the head stands at {head}"))
        if after:
            for number in NEEDS_THE_WHOLE_LOG:
                findings.leave_out(number, "it needs the whole log; leave --sample away")
        elif snapshots is not None and is_read:
            snapshots.close()
            _compare_tables(connection, log, totals, findings)
        _check_more(connection, more or {}, findings)
    found = tuple(findings.of(invariant) for invariant in INVARIANTS)
    return Diagnosis(head, totals.events, after == 0, found)


class _Totals:
    """What the log comes to, each as far as the read model that is compared with it has read."""

    def __init__(self, connection: Connection) -> None:
        self.events = 0
        upto: dict[str, int] = dict(connection.execute(READ_UPTO).fetchall())
        self.usage = UsageTotals()
        self.earnings = EarningTotals(upto.get("provider_earnings", 0))
        self.journal = JournalTotals(upto.get("journal_lines", 0))

    def read(self, logged: Logged) -> None:
        self.events += 1
        self.usage.read(logged)
        self.earnings.read(logged)
        self.journal.read(logged)


def _read_log(
    connection: Connection, log: LogCheck, totals: _Totals, snapshots: SnapshotCheck | None, findings: _Findings
) -> bool:
    """Read the log to its end; False when an event stands in the way that this build cannot read."""
    for position, originator_id, version, topic, recorded_at, state in _rows_of_log(connection, log.position):
        try:
            event = events.decode(topic, state)
        except (events.UnknownEvent, events.UnreadableEvent) as error:
            findings.report(Violation(14, position, str(originator_id), f"an event cannot be read: {error}"))
            return False
        if (event.originator_id, event.originator_version) != (originator_id, version):
            findings.report(Violation(14, position, str(originator_id), "an event's columns and its payload differ"))
        logged = Logged(position, recorded_at, event)
        log.read(logged)
        totals.read(logged)
        if snapshots is not None:
            snapshots.read(logged)
    log.close()
    return True


def _rows_of_log(connection: Connection, after: int) -> Iterator[tuple[Any, ...]]:
    while page := connection.execute(PAGE, (after, PAGE_EVENTS), binary=True, prepare=True).fetchall():
        yield from page
        after = page[-1][0]


def _row(connection: Connection, statement: str) -> tuple[Any, ...]:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row


# --- the read models -------------------------------------------------------------------------------------------------


def _compare_tables(connection: Connection, log: LogCheck, totals: _Totals, findings: _Findings) -> None:
    for (originator_id,) in connection.execute(GAP_IN_VERSIONS):
        findings.report(Violation(14, 0, originator_id, "the versions of an aggregate have a gap"))
    wallets = {
        account: (wallet.version, wallet.balance, wallet.withdrawable, wallet.held)
        for account, wallet in log.wallets.items()
    }
    requests = {event.request_id: (event.account_id, event.reserved) for event in log.open_requests.values()}
    for table, statement, expected in (
        ("wallet_balances", BALANCES, wallets),
        ("open_requests", OPEN_REQUESTS, requests),
        ("usage_entries", USAGE, _tuples(totals.usage.rows)),
        ("provider_earnings", EARNINGS, _tuples(totals.earnings.rows)),
        ("journal_lines", JOURNAL, _tuples(totals.journal.rows)),
    ):
        _compare(connection, table, statement, expected, findings)


def _tuples(rows: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(row) for key, row in rows.items()}


def _compare(
    connection: Connection, table: str, statement: str, expected: Mapping[str, tuple[Any, ...]], findings: _Findings
) -> None:
    """Compare a table's rows, by their first column, with what the log says."""
    unseen = set(expected)
    with connection.cursor(name=f"doctor_{table}") as cursor:
        for key, *row in cursor.execute(statement):
            unseen.discard(key)
            if expected.get(key) != tuple(row):
                findings.report(
                    Violation(12, 0, f"{table} {key}", f"the table has {row}, the log {list(expected.get(key, ()))}")
                )
    for key in sorted(unseen):
        findings.report(Violation(12, 0, f"{table} {key}", f"a row is missing; the log has {list(expected[key])}"))


def _check_more(connection: Connection, more: Mapping[int, Check], findings: _Findings) -> None:
    for number, check in more.items():
        wrong = check(connection)
        if wrong:
            findings.report(Violation(number, 0, "database", wrong))
    if 13 not in more:
        findings.leave_out(13, "a replay needs room to write; it is a command of its own")
