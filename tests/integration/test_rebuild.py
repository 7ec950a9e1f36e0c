"""Rebuilding read models beside the live ones: nobody notices, and a crash leaves everything as it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from adapters.postgres.writer import LedgerWriter
from projections import rebuild as rebuild_module
from projections.balances import BALANCE_OF
from projections.diff import replay_and_compare
from projections.page import EventNotReadable
from projections.rebuild import RebuildRunning, TablesInUse, TablesTied, rebuild
from projections.registry import INLINE, READ_MODELS, lagging
from projections.runner import ProjectionRunner
from tests.integration.test_migrations import catalogue
from tests.support.ledger_commands import account, grant
from tests.support.ledger_tables import assert_books_are_sound, balance_of, head_of
from tests.support.ledger_waiting import Connection, head_locked, in_thread, until, until_sessions_wait
from tests.support.ledger_writers import running
from tests.support.random_business import do_business
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
def ledger(database: str) -> str:
    """A database of its own: these tests replace its tables."""
    return database


@pytest.fixture
def kept(ledger: str, writer: LedgerWriter) -> str:
    """A ledger with some business, and tables that are at its head."""
    do_business(writer, 400, 7)
    catch_up(ledger)
    return ledger


def catch_up(url: str) -> None:
    ProjectionRunner(url, lagging()).catch_up()


def assert_tables_follow_from_the_log(url: str) -> None:
    assert [one.first_difference for one in replay_and_compare(url) if not one.identical] == []


def tables(look: Connection) -> dict[str, int]:
    """Each read model's table and its oid, which is another one when it was replaced."""
    rows = look.execute(
        "SELECT relname, oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%s)",
        (list(READ_MODELS),),
    )
    return dict(rows.fetchall())


def shadows(look: Connection) -> list[str]:
    return [row[0] for row in look.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'shadow%'")]


def spoil(look: Connection) -> None:
    """What a defect might have left in the tables."""
    look.execute("UPDATE trial_balance SET debit_micro_usd = debit_micro_usd + 1")
    look.execute("DELETE FROM usage_entries")
    look.execute("UPDATE wallet_balances SET balance_micro_usd = balance_micro_usd + 1")


def test_wrong_rows_are_made_right_and_the_tables_stay_what_they_were(kept: str, look: Connection) -> None:
    # Given tables with wrong rows, and somebody who may read one of them
    shape = catalogue(look)
    look.execute("GRANT SELECT ON trial_balance TO PUBLIC")
    storage = "SELECT relname, reloptions, relacl FROM pg_class WHERE relname = ANY(%s) ORDER BY 1"
    kinds = look.execute(storage, (list(READ_MODELS),)).fetchall()
    before = tables(look)
    spoil(look)
    # When everything is rebuilt
    rebuilt = rebuild(kept)
    # Then the rows follow from the log, in tables that are new but look the same.
    assert_tables_follow_from_the_log(kept)
    assert_books_are_sound(look)
    assert rebuilt.position == head_of(look)
    assert sorted(rebuilt.tables) == sorted(READ_MODELS)
    after = tables(look)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert catalogue(look) == shape
    assert look.execute(storage, (list(READ_MODELS),)).fetchall() == kinds
    assert shadows(look) == []


def test_only_the_named_tables_are_replaced_and_the_others_go_on(kept: str, look: Connection) -> None:
    before = tables(look)
    spoil(look)

    rebuild(kept, ["trial_balance", "usage_entries"])

    after = tables(look)
    assert {name for name in after if after[name] != before[name]} == {"trial_balance", "usage_entries"}
    wrong = {one.name for one in replay_and_compare(kept) if not one.identical}
    assert wrong == {"wallet_balances"}


def test_projections_that_never_ran_stand_at_the_head_after_a_rebuild(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    do_business(writer, 200, 7)

    rebuild(ledger)
    catch_up(ledger)

    assert_tables_follow_from_the_log(ledger)
    rows = look.execute("SELECT name, position FROM projection_tracking").fetchall()
    assert dict(rows) == dict.fromkeys(READ_MODELS.keys() - INLINE.keys(), head_of(look))


def test_an_empty_log_is_rebuilt_into_empty_tables(ledger: str) -> None:
    assert rebuild(ledger).position == 0


# --- while everything runs -------------------------------------------------------------------------------------------


@contextmanager
def asking(url: str) -> Generator[list[BaseException], None, None]:
    """Somebody who reads balances and totals all the time on prepared statements; what went wrong for them."""
    stop, wrong = threading.Event(), list[BaseException]()

    def ask() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                while not stop.is_set():
                    row = connection.execute(BALANCE_OF, ("acct_0",), prepare=True).fetchone()
                    assert row is not None, "a balance was gone"
                    row = connection.execute("SELECT count(*) FROM trial_balance", prepare=True).fetchone()
                    assert row is not None
                    assert row[0] > 0, "the trial balance was empty"
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()


def test_writers_readers_and_runners_go_on_through_rebuilds(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    writer.execute(grant("acct_0", 1_000_000))
    catch_up(ledger)
    runner = ProjectionRunner(ledger, lagging())
    runner.start()
    with running(ledger) as another, asking(ledger) as wrong:
        busy = [
            in_thread(lambda by=by, seed=seed: do_business(by, 3_000, seed)) for seed, by in ((1, writer), (2, another))
        ]
        positions = [rebuild(ledger, page_events=500).position]
        while not all(one.done() for one in busy):
            positions.append(rebuild(ledger, page_events=500).position)
        for one in busy:
            one.result(60)  # no command failed but by its own refusal
        until(lambda: set(lags(look)) == {0}, "the runner is at the head")
    runner.stop()

    assert wrong == []
    assert len(set(positions)) > 1, "nothing was written between two rebuilds"
    assert_tables_follow_from_the_log(ledger)
    assert_books_are_sound(look)


def test_what_is_written_at_the_moment_of_the_swap_waits_and_is_not_lost(
    kept: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given somebody who writes right after the last stretch was replayed
    consumer = account()
    written: list[Future[Any]] = []
    advance = rebuild_module._Rebuild._advance

    def then_write(self: Any, *arguments: Any) -> None:
        advance(self, *arguments)
        if self._admin.info.transaction_status == TransactionStatus.INTRANS:
            written.append(in_thread(lambda: writer.execute(grant(consumer, 5))))
            until_sessions_wait(look, 1)

    monkeypatch.setattr(rebuild_module._Rebuild, "_advance", then_write)
    # When the tables are swapped
    rebuild(kept)
    # Then the write comes after them.
    assert written[0].result(30).balance_micro_usd == 5
    assert balance_of(look, consumer) == 5
    catch_up(kept)
    assert_tables_follow_from_the_log(kept)


def lags(look: Connection) -> list[int]:
    rows = look.execute("SELECT h.position - t.position FROM projection_tracking t, ledger_head h").fetchall()
    return [row[0] for row in rows]


def test_one_rebuild_at_a_time(kept: str, look: Connection) -> None:
    with head_locked(kept):
        first = in_thread(lambda: rebuild(kept))
        until(lambda: shadows(look), "the first one has begun")

        with pytest.raises(RebuildRunning, match="Another rebuild runs"):
            rebuild(kept)
        assert len(shadows(look)) == 1

    assert first.result(60).position == head_of(look)
    assert_tables_follow_from_the_log(kept)


def test_a_reader_that_never_ends_fails_the_rebuild_and_holds_nobody_up(
    kept: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(rebuild_module, "SWAP_TRIES", 3)
    before = tables(look)
    with psycopg.connect(kept) as reader:
        reader.execute("SELECT FROM wallet_balances")

        with pytest.raises(TablesInUse, match="Nothing was changed"):
            rebuild(kept)

        writer.execute(grant(account(), 5))
    assert tables(look) == before
    assert shadows(look) == []
    catch_up(kept)
    assert_tables_follow_from_the_log(kept)


def test_an_event_that_cannot_be_read_leaves_the_tables_as_they_were(kept: str, look: Connection) -> None:
    before = tables(look)
    with past_the_guard(look):
        look.execute(
            "UPDATE events SET state = 'x' WHERE position ="
            " (SELECT max(position) FROM events WHERE topic = 'JournalEntry.JournalEntryPosted')"
        )

    with pytest.raises(EventNotReadable):
        rebuild(kept)

    assert tables(look) == before
    assert shadows(look) == []


@pytest.mark.parametrize(
    ("made", "name"),
    [
        ("CREATE VIEW totals AS SELECT * FROM usage_totals", "view totals"),
        (
            "CREATE TRIGGER same BEFORE UPDATE ON usage_totals FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "trigger same",
        ),
        ("GRANT SELECT (requests) ON usage_totals TO PUBLIC", "right on column requests"),
    ],
)
def test_what_would_be_lost_with_a_table_is_named_and_nothing_is_done(
    kept: str, look: Connection, made: str, name: str
) -> None:
    look.execute(made)
    before = tables(look)

    with pytest.raises(TablesTied, match=f"drop it first.*{name}"):
        rebuild(kept)

    assert tables(look) == before
    assert shadows(look) == []


# --- crashes ---------------------------------------------------------------------------------------------------------

DIE_AFTER = """
import os, signal, sys
import psycopg
from projections.rebuild import rebuild

url, marker = sys.argv[1:]
execute = psycopg.Cursor.execute

def deadly(self, query, *args, **options):
    text = query if isinstance(query, str) else query.as_string(None)
    result = execute(self, query, *args, **options)
    if marker in text:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

psycopg.Cursor.execute = deadly
rebuild(url)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "CREATE TABLE",
        "TABLE earning_totals ADD CONSTRAINT",
        "SELECT position, recorded_at",
        "ANALYZE",
        "FOR UPDATE",
        "DROP TABLE",
        "DROP SCHEMA",
    ],
)
def test_a_crash_at_any_moment_leaves_the_tables_and_the_next_run_cleans_up(
    kept: str, writer: LedgerWriter, look: Connection, moment: str
) -> None:
    # Given a rebuild that is killed right after its first statement of some kind
    before, shape, rows = tables(look), catalogue(look), every_row(look)
    died = subprocess.run([sys.executable, "-c", DIE_AFTER, kept, moment], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    # Then the live tables are as they were, and the writer goes on.
    until(lambda: sessions_of_the_rebuild(look) == 0, "the server has noticed")
    assert (tables(look), catalogue(look), every_row(look)) == (before, shape, rows)
    assert len(shadows(look)) == 1
    writer.execute(grant(account(), 5))
    # And the next rebuild works and leaves nothing of the last one.
    rebuild(kept)
    assert shadows(look) == []
    assert_tables_follow_from_the_log(kept)


def every_row(look: Connection) -> dict[str, list[Any]]:
    return {name: look.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in READ_MODELS}


def sessions_of_the_rebuild(look: Connection) -> int:
    row = look.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
    assert row is not None
    return int(row[0])
