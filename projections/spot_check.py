"""Looks at a few wallets again and again: their events, their balances and the journal must say the same.

The writer checks what it appends; this finds what changed afterwards, or what two tables tell differently. It walks
through all accounts from a random place on, so each one's turn comes. A difference that is still there at a second
look, in a new snapshot, stops every writer: the head row counts the stops, and a writer that sees a new one while it
takes the head's lock writes nothing more until its process starts again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from random import SystemRandom
from typing import Any

import psycopg

from domain import events
from domain.invariants import Violation, WalletFold
from domain.journal import BUCKET_CODES
from domain.wallet import Wallet
from projections.page import Connection

log = logging.getLogger(__name__)

WALLETS = 20
"""How many wallets one look takes."""

EVENTS_MAX = 20_000
"""Longer histories are left to the doctor, so that one look stays short."""

ANY_ACCOUNT = """
SELECT account_id FROM wallet_balances
ORDER BY account_id OFFSET (SELECT floor(random() * greatest(reltuples, 1)) FROM pg_class
                            WHERE oid = 'wallet_balances'::regclass)
LIMIT 1
"""
"""Somewhere in the table; nothing when the estimate of its size is too high."""

NEXT_BALANCES = """
SELECT account_id, wallet_version, balance_micro_usd, withdrawable_micro_usd, held_micro_usd
FROM wallet_balances WHERE account_id > %s ORDER BY account_id LIMIT %s
"""
BALANCE = """
SELECT account_id, wallet_version, balance_micro_usd, withdrawable_micro_usd, held_micro_usd
FROM wallet_balances WHERE account_id = %s
"""
WALLET_EVENTS = "SELECT position, topic, state FROM events WHERE originator_id = %s ORDER BY originator_version"
JOURNAL_STANDS_AT = "SELECT position FROM projection_tracking WHERE name = 'sub_account_balances'"
JOURNAL = """
SELECT account_code, credit_micro_usd - debit_micro_usd FROM sub_account_balances
WHERE sub_account = %s AND account_code = ANY(%s)
"""
HEAD = "SELECT position FROM ledger_head"

COUNT_STOP = "UPDATE ledger_head SET stops = stops + 1 RETURNING stops"
NOTE_STOP = "INSERT INTO ledger_stops (stop, position, finding) VALUES (%s, %s, %s)"


def find(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> Iterator[Violation]:
    """Compare wallets with their events, inside of one snapshot. ``rows`` are NEXT_BALANCES' or BALANCE's."""
    stands_at = connection.execute(JOURNAL_STANDS_AT).fetchone()
    for account_id, version, balance, withdrawable, held in rows:
        if version > EVENTS_MAX:
            continue
        upto = stands_at[0] if stands_at else 0
        wallet, posted = WalletFold(), dict.fromkeys(BUCKET_CODES, 0)
        for position, topic, state in connection.execute(WALLET_EVENTS, (Wallet.id_of(account_id),), binary=True):
            wallet.follow(events.decode(topic, state))
            if position <= upto:
                posted = dict(wallet.buckets)
        said = (wallet.version, wallet.balance, wallet.withdrawable, wallet.held)
        if said != (version, balance, withdrawable, held):
            yield Violation(12, 0, account_id, "the wallet's events and its balance differ")
        elif wallet.is_overdrawn:
            yield Violation(3, 0, account_id, "a bucket, the balance or the withdrawable amount is below zero")
        if stands_at is None:
            continue
        journal: dict[str, int] = dict(
            connection.execute(JOURNAL, (account_id, list(BUCKET_CODES.values()))).fetchall()
        )
        if any(posted[bucket] != journal.get(code, 0) for bucket, code in BUCKET_CODES.items()):
            yield Violation(4, 0, account_id, "the wallet's events and the journal's sub-accounts differ")


class SpotCheck:
    """Looks every so many seconds, in one thread, until stopped. Any number of processes may run one."""

    def __init__(self, dsn: str, *, seconds: float) -> None:
        self._dsn = dsn
        self._seconds = seconds
        self._after: str | None = None
        self._random = SystemRandom()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spot-check", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        # Processes that were started together look at different moments.
        pause = self._random.uniform(0, self._seconds)
        while not self._stopping.wait(pause):
            pause = self._seconds
            try:
                self.look()
            except (psycopg.Error, events.UnknownEvent, events.UnreadableEvent) as error:
                log.warning("the wallets could not be checked just now: %s", type(error).__name__)

    def look(self) -> Sequence[Violation]:
        """Check the wallets whose turn it is, and stop the writers over what is wrong. Returns that."""
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=10) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            with connection.transaction():
                suspects = list(find(connection, self._next(connection)))
            found: list[Violation] = []
            # A table that was swapped for a rebuilt one looks empty to a snapshot from before; a new one sees it.
            for account_id in {suspect.subject for suspect in suspects}:
                with connection.transaction():
                    found += find(connection, connection.execute(BALANCE, (account_id,)).fetchall())
            if found:
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                self._stop_writers(connection, found[0])
        return found

    def _next(self, connection: Connection) -> Sequence[tuple[Any, ...]]:
        if self._after is None:
            row = connection.execute(ANY_ACCOUNT).fetchone()
            self._after = row[0] if row else ""
        rows = connection.execute(NEXT_BALANCES, (self._after, WALLETS)).fetchall()
        self._after = rows[-1][0] if len(rows) == WALLETS else ""
        return rows

    def _stop_writers(self, connection: Connection, violation: Violation) -> None:
        with connection.transaction():
            stop = connection.execute(COUNT_STOP).fetchone()
            head = connection.execute(HEAD).fetchone()
            assert stop is not None
            assert head is not None
            connection.execute(NOTE_STOP, (stop[0], head[0], str(violation)))
        log.critical("the books do not agree and every writer stops: %s", violation)
