"""How long an auditor waits: questions about past instants of a log with a million journal lines.

    python -m benchmarks.audit --database-url postgresql://postgres@127.0.0.1:5432/postgres

Makes a database of its own on that server and drops it at the end.
"""

from __future__ import annotations

import argparse
import random
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

from adapters.postgres import migrate
from domain import events
from domain.accounts import Account, AccountOpened
from domain.eventsourced import Actor, Aggregate, DomainEvent
from domain.journal import JournalEntry, JournalEntryPosted, credit, debit
from domain.wallet import HoldCaptured, HoldPlaced, Split, Wallet
from projections.audit import entries, export, holds, statement
from projections.audit import trial_balance as balances
from projections.audit.holds import HoldHistory
from projections.audit.instants import Connection, at_head, at_position, at_time, between, snapshot
from projections.audit.marks import TrialBalanceMarks
from projections.audit.sources import EVENTS_ALONE, sources_of
from projections.journal import JournalLines
from projections.runner import ProjectionRunner

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
SYSTEM = Actor("system", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--lines", type=int, default=1_000_000, help="journal lines; three to an entry")
    options = parser.parse_args()
    name = f"darkbloom_audit_{secrets.token_hex(4)}"
    base, _, _ = options.database_url.rpartition("/")
    url = f"{base}/{name}"
    with psycopg.connect(options.database_url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        try:
            measure(url, options.lines)
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def measure(url: str, lines: int) -> None:
    migrate.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        fill(connection, lines // 3)
        started = time.perf_counter()
        ProjectionRunner(url, [JournalLines(), TrialBalanceMarks(), HoldHistory()]).catch_up()
        print(f"read models caught up in {time.perf_counter() - started:.1f} s")
        connection.execute("VACUUM ANALYZE")
        ask(connection)


def fill(connection: Connection, cycles: int) -> None:
    """Holds, captures and settlements of a hundred accounts, a transaction of three events each millisecond."""
    started = time.perf_counter()
    position = 0
    with connection.transaction():
        copy = "COPY events (position, originator_id, originator_version, topic, recorded_at, state) FROM STDIN"
        with connection.cursor().copy(copy) as rows:
            for event in cycle_events(cycles):
                position += 1
                recorded_at = BEGINNING + timedelta(milliseconds=position // 3)
                rows.write_row(
                    (
                        position,
                        event.originator_id,
                        event.originator_version,
                        event.TOPIC,
                        recorded_at,
                        events.encode(event),
                    )
                )
        connection.execute("UPDATE ledger_head SET position = %s, recorded_at = %s", (position, recorded_at))
    print(f"{position} events written in {time.perf_counter() - started:.1f} s")


def cycle_events(cycles: int) -> Iterator[DomainEvent]:
    chance = random.Random(1)
    wallets = {f"acct_{number}": Wallet(Wallet.id_of(f"acct_{number}")) for number in range(100)}
    for account_id in wallets:
        yield make(Account(Account.id_of(account_id)), AccountOpened, BEGINNING, account_id=account_id, kind="user")
    for number in range(cycles):
        account_id = chance.choice(list(wallets))
        wallet, at = wallets[account_id], BEGINNING + timedelta(milliseconds=number)
        hold_id, cost = str(UUID(int=number)), chance.randint(100, 5_000)
        yield make(
            wallet,
            HoldPlaced,
            at,
            account_id=account_id,
            hold_id=hold_id,
            amount=2 * cost,
            expires_at=at,
            purpose="inference",
        )
        yield make(
            wallet,
            HoldCaptured,
            at,
            account_id=account_id,
            hold_id=hold_id,
            captured=cost,
            released=cost,
            split=Split(promotional=cost),
        )
        fee = cost // 10
        yield make(
            JournalEntry(JournalEntry.id_of(f"settle:{hold_id}")),
            JournalEntryPosted,
            BEGINNING + timedelta(milliseconds=(3 * number + 103) // 3),
            entry_key=f"settle:{hold_id}",
            kind="settlement",
            effective_at=BEGINNING + timedelta(milliseconds=(3 * number + 103) // 3),
            postings=(
                debit("2005", account_id, cost),
                credit("2100", f"acct_{number % 100}", cost - fee),
                credit("4000", "", fee),
            ),
            reference=hold_id,
            metadata={},
            reverses_entry_id=None,
        )


def make(aggregate: Aggregate, kind: type[DomainEvent], at: datetime, /, **payload: Any) -> DomainEvent:
    aggregate.version += 1
    return kind(
        originator_id=aggregate.id,
        originator_version=aggregate.version,
        schema_version=1,
        timestamp=at,
        actor=SYSTEM,
        correlation_id=str(uuid4()),
        **payload,
    )


def ask(connection: Connection) -> None:
    chance = random.Random(2)
    with snapshot(connection):
        head = at_head(connection)
        sources = sources_of(connection)
        row = connection.execute("SELECT count(*) FROM journal_lines").fetchone()
        assert row is not None
        print(f"{row[0]} journal lines, head {head.position}; milliseconds:")

        def moment() -> datetime:
            return BEGINNING + (head.at - BEGINNING) * chance.random()

        everything = between(connection, None, None)
        wanted = entries.Filters(account="acct_7", code="2100")
        questions: dict[str, tuple[int, Callable[[], object]]] = {
            "time to position": (50, lambda: at_time(connection, moment())),
            "trial balance at a past time": (
                50,
                lambda: balances.recorded(connection, at_time(connection, moment()), sources),
            ),
            "trial balance, effective": (50, lambda: balances.effective(connection, moment(), head, sources)),
            "trial balance, events alone": (
                1,
                lambda: balances.recorded(connection, at_position(connection, head.position), EVENTS_ALONE),
            ),
            "statement, first page of 1,000": (
                5,
                lambda: statement.statement(connection, "acct_7", everything, sources, cursor="", limit=1_000),
            ),
            "search, page of 100": (
                5,
                lambda: entries.search(connection, everything, wanted, sources, cursor="", limit=100),
            ),
            "open holds": (5, lambda: holds.open_holds(connection, sources, older_than_seconds=0, limit=100)),
            "export of all entries": (
                1,
                lambda: sum(map(len, export.export(connection, everything, what="entries", format_="jsonl"))),
            ),
        }
        for name, (times, question) in questions.items():
            took = []
            for _ in range(times):
                started = time.perf_counter()
                question()
                took.append((time.perf_counter() - started) * 1_000)
            print(f"  {name:32} median {statistics.median(took):9.1f}  slowest {max(took):9.1f}")


if __name__ == "__main__":
    main()
