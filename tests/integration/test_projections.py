"""The lagging read models on a real log: each event applied once, whoever runs them and however often they start."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from adapters.postgres.writer import LedgerWriter
from domain.journal import CHART, JournalEntryPosted
from projections import runner as runner_module
from projections.earnings import TOTAL_OF_MACHINE, Earnings
from projections.journal import JournalLines, trial_balance
from projections.lag import lag_of
from projections.page import Page
from projections.registry import LAGGING, lagging
from projections.runner import ProjectionRunner
from projections.trial_balance import current_trial_balance
from tests.support.ledger_commands import MACHINE_ID, account, admit, dispatch, grant, release, settled_request
from tests.support.ledger_tables import head_of, log_of, wallets
from tests.support.ledger_waiting import Connection, terminate_sessions, until
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures"]

TABLES = ("provider_earnings", "journal_lines")


def make_runner(url: str) -> ProjectionRunner:
    return ProjectionRunner(url, [Earnings(), JournalLines()])


@contextmanager
def following(url: str) -> Generator[ProjectionRunner, None, None]:
    runner = make_runner(url)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


def rows(look: Connection, table: str) -> list[tuple[Any, ...]]:
    return look.execute(f"SELECT * FROM {table} ORDER BY position, 2").fetchall()


def positions_in(page: Page, projection: type[Earnings | JournalLines]) -> list[int]:
    return [position for position, _, _ in page.of_any(*projection.events)]


def tracked(look: Connection) -> dict[str, int]:
    return dict(look.execute("SELECT name, position FROM projection_tracking").fetchall())


def until_caught_up(look: Connection) -> None:
    until(lambda: set(tracked(look).values()) == {head_of(look)}, "the projections are at the head of the log")


def business(writer: LedgerWriter) -> tuple[str, str]:
    """Grants, settlements with and without a linked machine or a fee, a free one, a release and an open request."""
    consumer, provider = account("consumer"), account("provider")
    writer.execute(grant(consumer, 10_000))
    writer.execute(grant(provider, 500))
    settled_request(writer, consumer, hold=1_000, cost=700, provider=provider)
    settled_request(writer, consumer, hold=1_000, cost=333, provider=provider, fee_percent=10)
    settled_request(writer, consumer, hold=1_000, cost=250, fee_percent=7)
    settled_request(writer, consumer, hold=100, cost=100, provider=provider, fee_percent=100)
    settled_request(writer, provider, hold=100, cost=80, provider=provider)  # its own machine: free
    settled_request(writer, provider, hold=600, cost=550, provider=consumer)  # spends credit and then earnings
    ended, left_open = (admit(consumer, 50) for _ in range(2))
    for admission in (ended, left_open):
        writer.execute(admission)
        writer.execute(dispatch(admission.request_id))
    writer.execute(release(consumer, ended.request_id))
    return consumer, provider


def balances_by_fold(look: Connection) -> dict[str, tuple[int, int]]:
    """Debits and credits of each account of the chart, straight from the stored entries."""
    debits: Counter[str] = Counter()
    credits_: Counter[str] = Counter()
    for event in log_of(look):
        if event.name == "JournalEntryPosted":
            for posting in event.payload["postings"]:
                side = debits if posting["direction"] == "debit" else credits_
                side[posting["account_code"]] += posting["amount"]
    return {code: (debits[code], credits_[code]) for code in sorted(debits.keys() | credits_.keys())}


# --- what they say ---------------------------------------------------------------------------------------------------


def test_each_settlement_with_a_share_for_the_provider_is_an_earning(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    consumer, provider = business(writer)

    make_runner(ledger).catch_up()

    earned = [(row[1], row[2], row[5], row[7]) for row in rows(look, "provider_earnings")]
    assert earned == [
        (provider, MACHINE_ID, 700, 700),
        (provider, MACHINE_ID, 300, 333),
        ("", MACHINE_ID, 233, 250),
        (consumer, MACHINE_ID, 550, 550),
    ]
    assert look.execute(TOTAL_OF_MACHINE, (MACHINE_ID,)).fetchone() == (1_783, 4)
    assert look.execute(TOTAL_OF_MACHINE, ("nobody",)).fetchone() == (0, 0)


def test_every_posting_of_every_entry_is_a_line(ledger: str, writer: LedgerWriter, look: Connection) -> None:
    business(writer)

    make_runner(ledger).catch_up()

    expected = [
        (
            event.position,
            line,
            event.originator_id,
            event.payload["entry_key"],
            posting["account_code"],
            posting["sub_account"],
            posting["amount"] * (posting["direction"] == "debit"),
            posting["amount"] * (posting["direction"] == "credit"),
        )
        for event in log_of(look)
        if event.name == "JournalEntryPosted"
        for line, posting in enumerate(event.payload["postings"])
    ]
    assert len(expected) > 10
    assert [(*row[:4], *row[8:]) for row in rows(look, "journal_lines")] == expected


def test_the_trial_balance_sums_to_zero_and_agrees_with_the_log_and_the_wallets(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    business(writer)

    make_runner(ledger).catch_up()

    lines = {line.code: line for line in trial_balance(look)}
    assert sum(line.debit_micro_usd - line.credit_micro_usd for line in lines.values()) == 0
    assert {code: (line.debit_micro_usd, line.credit_micro_usd) for code, line in lines.items()} == balances_by_fold(
        look
    )
    for code, line in lines.items():
        sign = 1 if CHART[code].account_class in ("asset", "expense") else -1
        assert line.balance_micro_usd == sign * (line.debit_micro_usd - line.credit_micro_usd)
        assert line.name == CHART[code].name
    # What customers and providers are owed is what their wallets hold.
    owed = sum(lines[code].balance_micro_usd for code in ("2005", "2100"))
    assert owed == sum(row.balance + row.held for row in wallets(look).values())
    assert lines["2190"].balance_micro_usd == 233
    assert lines["4000"].balance_micro_usd == 33 + 17 + 100


def test_every_entry_balances_by_itself(ledger: str, writer: LedgerWriter, look: Connection) -> None:
    business(writer)

    make_runner(ledger).catch_up()

    unbalanced = look.execute(
        "SELECT entry_id FROM journal_lines GROUP BY entry_id "
        "HAVING sum(debit_micro_usd) <> sum(credit_micro_usd) OR count(*) < 2"
    ).fetchall()
    assert unbalanced == []


def test_without_any_event_the_trial_balance_is_empty(ledger: str, look: Connection) -> None:
    make_runner(ledger).catch_up()

    assert trial_balance(look) == []
    assert tracked(look) == {"provider_earnings": 0, "journal_lines": 0}


# --- following -------------------------------------------------------------------------------------------------------


def test_a_running_projection_shows_what_is_written_while_it_runs(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    with following(ledger):
        business(writer)
        until_caught_up(look)
        business(writer)
        until_caught_up(look)

    assert len(rows(look, "provider_earnings")) == 8


def test_a_runner_that_starts_again_goes_on_where_the_last_one_stopped(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    apply = JournalLines.apply

    def noted(self: JournalLines, connection: Connection, page: Page) -> None:
        seen.extend(positions_in(page, JournalLines))
        apply(self, connection, page)

    monkeypatch.setattr(JournalLines, "apply", noted)
    business(writer)
    make_runner(ledger).catch_up()
    first = list(seen)
    assert set(tracked(look).values()) == {head_of(look)}

    business(writer)
    make_runner(ledger).catch_up()
    make_runner(ledger).catch_up()

    assert len(seen) == 2 * len(first)
    assert seen == [event.position for event in log_of(look) if event.topic == JournalEntryPosted.TOPIC]


def test_a_page_that_fails_moves_nothing_of_its_projection_and_is_applied_later(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    business(writer)
    apply = Earnings.apply

    def fail_at_the_end(self: Earnings, connection: Connection, page: Page) -> None:
        apply(self, connection, page)
        connection.execute("SELECT 1 / 0")

    with monkeypatch.context() as broken:
        broken.setattr(Earnings, "apply", fail_at_the_end)
        make_runner(ledger).catch_up()
    assert rows(look, "provider_earnings") == []
    assert tracked(look) == {"provider_earnings": 0, "journal_lines": head_of(look)}

    make_runner(ledger).catch_up()

    assert len(rows(look, "provider_earnings")) == 4


def test_a_projection_that_fails_once_while_it_follows_does_not_end_them_all(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    apply, failures = Earnings.apply, iter([True])

    def fail_once(self: Earnings, connection: Connection, page: Page) -> None:
        if next(failures, False):
            raise ValueError("a bug, or an event that only a newer build can read")
        apply(self, connection, page)

    monkeypatch.setattr(Earnings, "apply", fail_once)
    with following(ledger):
        business(writer)
        until(
            lambda: ended or set(tracked(look).values()) == {head_of(look)}, "the projections are at the head or ended"
        )

    assert not ended, "the thread of the projections ended"
    assert len(rows(look, "provider_earnings")) == 4


def test_two_runners_at_once_apply_each_event_once(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "PAGE_EVENTS", 3)
    applied: Counter[int] = Counter()
    for projection in (Earnings, JournalLines):
        _count(monkeypatch, projection, applied)
    with following(ledger), following(ledger):
        for _ in range(3):
            business(writer)
        until_caught_up(look)

    topics = {kind.TOPIC for kind in (*Earnings.events, *JournalLines.events)}
    assert applied == Counter(event.position for event in log_of(look) if event.topic in topics)
    assert len(rows(look, "provider_earnings")) == 12
    assert {line.code: (line.debit_micro_usd, line.credit_micro_usd) for line in trial_balance(look)} == (
        balances_by_fold(look)
    )


def _count(monkeypatch: pytest.MonkeyPatch, projection: type[Earnings | JournalLines], applied: Counter[int]) -> None:
    apply, lock = projection.apply, threading.Lock()

    def counted(self: Any, connection: Connection, page: Page) -> None:
        apply(self, connection, page)
        with lock:
            applied.update(positions_in(page, projection))

    monkeypatch.setattr(projection, "apply", counted)


@contextmanager
def held_in_the_middle_of_a_page(url: str, monkeypatch: pytest.MonkeyPatch) -> Generator[Future[None], None, None]:
    """A runner that has applied its first page and does not commit it before this ends; what becomes of it."""
    inside, may_end = threading.Event(), threading.Event()
    apply = Earnings.apply

    def slow(self: Earnings, connection: Connection, page: Page) -> None:
        apply(self, connection, page)
        inside.set()
        may_end.wait(30)

    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as slowed:
            slowed.setattr(Earnings, "apply", slow)
            runner = pool.submit(make_runner(url).catch_up)
            assert inside.wait(30)
        try:
            yield runner
        finally:
            may_end.set()


def test_a_runner_leaves_a_page_alone_that_another_one_is_just_applying(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    business(writer)
    with held_in_the_middle_of_a_page(ledger, monkeypatch) as first:
        # The other one neither waits for it nor applies the same page.
        make_runner(ledger).catch_up()
        assert tracked(look) == {"provider_earnings": 0, "journal_lines": 0}
    first.result(30)

    assert len(rows(look, "provider_earnings")) == 4
    assert set(tracked(look).values()) == {head_of(look)}


def test_a_page_that_another_runner_applied_in_between_is_not_applied_again(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a runner that has seen where the projections stand, and another one that is faster
    business(writer)
    slow = make_runner(ledger)
    advance = slow._advance

    def overtaken(*seen: Any) -> bool:
        make_runner(ledger).catch_up()
        return advance(*seen)

    monkeypatch.setattr(slow, "_advance", overtaken)
    # When the first one comes to apply what it saw
    slow.catch_up()
    # Then it finds nothing to do.
    assert [one.failure for one in lag_of(look)] == [None, None]
    assert len(rows(look, "provider_earnings")) == 4


def test_a_runner_takes_over_when_the_one_that_was_applying_dies(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    business(writer)
    with held_in_the_middle_of_a_page(ledger, monkeypatch) as first:
        assert terminate_sessions(look, "query ILIKE '%provider_earnings%'") == 1

        make_runner(ledger).catch_up()

        assert set(tracked(look).values()) == {head_of(look)}
    with pytest.raises(psycopg.OperationalError):
        first.result(30)
    assert len(rows(look, "provider_earnings")) == 4
    assert {line.code: (line.debit_micro_usd, line.credit_micro_usd) for line in trial_balance(look)} == (
        balances_by_fold(look)
    )


class Pooled(psycopg.Connection[Any]):
    """A session of a transaction pooler's: the next transaction finds nothing of what the last one set up."""

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Generator[psycopg.Transaction, None, None]:
        outermost = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(*args, **options) as transaction:
            yield transaction
        if outermost:
            self.pgconn.exec_(b"DISCARD ALL")  # the client side must not notice


def test_behind_a_transaction_pooler_everything_is_applied_though_no_notification_comes(
    ledger: str,
    writer: LedgerWriter,
    look: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runner_module, "PAGE_EVENTS", 5)  # many transactions, enough for prepared statements
    monkeypatch.setattr(runner_module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(psycopg, "connect", Pooled.connect)
    runner = ProjectionRunner(ledger, lagging())
    runner.start()
    try:
        for _ in range(2):
            business(writer)
            until_caught_up(look)
    finally:
        runner.stop()

    assert caplog.messages == [], "nothing was lost and taken up again"
    assert len(rows(look, "provider_earnings")) == 8
    assert {line.code: (line.debit_micro_usd, line.credit_micro_usd) for line in current_trial_balance(look)} == (
        balances_by_fold(look)
    )


# --- what stands still -----------------------------------------------------------------------------------------------


def test_an_event_of_a_newer_build_stops_those_that_read_it_and_they_say_where(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    business(writer)
    damaged = next(event.position for event in log_of(look) if event.topic == JournalEntryPosted.TOPIC)
    with past_the_guard(look):
        look.execute(
            "UPDATE events SET state = replace(convert_from(state, 'UTF8'), '\"schema_version\":1', "
            "'\"schema_version\":9')::bytea WHERE position = %s",
            (damaged,),
        )

    ProjectionRunner(ledger, lagging()).catch_up()

    found = {one.name: one for one in lag_of(look)}
    stopped = {name for name, one in found.items() if one.failure}
    assert stopped == {name for name, make in LAGGING.items() if JournalEntryPosted in make().events}
    assert stopped >= {"journal_lines", "ledger_lines", "trial_balance", "sub_account_balances"}
    for name in stopped:
        assert found[name].failure == (
            f"the event at position {damaged} (JournalEntry.JournalEntryPosted) cannot be read: UnknownEvent"
        )
        assert (found[name].position, found[name].positions) == (0, head_of(look))
        assert found[name].seconds > 0
    assert {one.positions for name, one in found.items() if name not in stopped} == {0}
    assert len(rows(look, "provider_earnings")) == 4


def test_a_projection_that_can_go_on_again_forgets_why_it_stood(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    business(writer)
    with monkeypatch.context() as broken:
        broken.setattr(Earnings, "apply", lambda *_: 1 / 0)
        make_runner(ledger).catch_up()
    assert {one.name: one.failure for one in lag_of(look)} == {
        "journal_lines": None,
        "provider_earnings": "ZeroDivisionError",
    }

    make_runner(ledger).catch_up()

    assert all(one.failure is None and one.positions == 0 and one.seconds == 0 for one in lag_of(look))


def test_a_projection_whose_tracking_was_set_back_stands_still_instead_of_adding_rows_twice(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    business(writer)
    make_runner(ledger).catch_up()
    before = rows(look, "provider_earnings")
    look.execute("UPDATE projection_tracking SET position = 0 WHERE name = 'provider_earnings'")

    make_runner(ledger).catch_up()

    assert rows(look, "provider_earnings") == before
    assert {one.name: one.failure for one in lag_of(look)}["provider_earnings"] == "UniqueViolation"


def test_projections_that_stand_apart_each_get_their_own_pages_and_meet_at_the_head(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    business(writer)
    ProjectionRunner(ledger, [JournalLines()]).catch_up()
    business(writer)
    monkeypatch.setattr(runner_module, "PAGE_EVENTS", 7)

    make_runner(ledger).catch_up()

    assert len(rows(look, "provider_earnings")) == 8
    assert set(tracked(look).values()) == {head_of(look)}


def test_lag_counts_what_was_not_applied(ledger: str, writer: LedgerWriter, look: Connection) -> None:
    business(writer)
    make_runner(ledger).catch_up()
    at = head_of(look)
    writer.execute(grant(account(), 5))

    for one in lag_of(look):
        assert (one.position, one.positions, one.failure) == (at, 2, None)
        assert 0 < one.seconds < 60


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_killed_connection_is_made_again_and_nothing_is_applied_twice(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "IDLE_SECONDS", 0.05)
    with following(ledger) as runner:
        monkeypatch.setattr(runner._stopping, "wait", lambda _: runner._stopping.is_set())  # no pause before it
        for _ in range(3):
            business(writer)
            until_caught_up(look)
            assert terminate_sessions(look) == 2  # the writer's and the projections'
            writer_is_back(writer)
        business(writer)
        until_caught_up(look)

    assert len(rows(look, "provider_earnings")) == 16
    assert {line.code: (line.debit_micro_usd, line.credit_micro_usd) for line in trial_balance(look)} == (
        balances_by_fold(look)
    )


def writer_is_back(writer: LedgerWriter) -> None:
    """The writer's session was killed as well; its next command may have to be repeated."""

    def again() -> bool:
        try:
            writer.execute(grant("acct_probe", 1, "probe"))
        except Exception:
            return False
        return True

    until(again, "the writer has a connection")


@pytest.mark.parametrize("when", ["before it wrote", "after it wrote"])
def test_a_connection_killed_within_a_page_leaves_it_to_be_applied_once(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    business(writer)
    monkeypatch.setattr(runner_module, "PAGE_EVENTS", 5)
    apply, kills = JournalLines.apply, iter(["kill"])

    def killed(self: JournalLines, connection: Connection, page: Page) -> None:
        if when == "after it wrote":
            apply(self, connection, page)
        if next(kills, None):
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        if when == "before it wrote":
            apply(self, connection, page)

    monkeypatch.setattr(JournalLines, "apply", killed)
    runner = make_runner(ledger)
    monkeypatch.setattr(runner._stopping, "wait", lambda _: runner._stopping.is_set())
    runner.start()
    until(lambda: tracked(look).get("journal_lines") == head_of(look), "the journal is at the head")
    runner.stop()

    assert {line.code: (line.debit_micro_usd, line.credit_micro_usd) for line in trial_balance(look)} == (
        balances_by_fold(look)
    )


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_events", [1, 7, 5_000])
def test_replay_into_empty_tables_gives_identical_rows_for_every_page_size(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch, page_events: int
) -> None:
    # Given tables that grew while the business went on
    for _ in range(2):
        business(writer)
        make_runner(ledger).catch_up()
    live = {table: rows(look, table) for table in TABLES}
    assert all(live.values())
    # When they are emptied and filled again from the first event
    look.execute(f"TRUNCATE {', '.join(TABLES)}, projection_tracking")
    monkeypatch.setattr(runner_module, "PAGE_EVENTS", page_events)
    make_runner(ledger).catch_up()
    # Then they are the same to the last bit.
    assert {table: rows(look, table) for table in TABLES} == live
    assert set(tracked(look).values()) == {head_of(look)}


def test_pages_without_an_event_of_interest_are_passed(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = account()
    writer.execute(grant(consumer, 1_000))
    for _ in range(5):
        admission = admit(consumer, 10)
        writer.execute(admission)
        writer.execute(release(consumer, admission.request_id))
    settled_request(writer, consumer, hold=100, cost=60)
    monkeypatch.setattr(runner_module, "PAGE_EVENTS", 2)

    make_runner(ledger).catch_up()

    assert [row[5] for row in rows(look, "provider_earnings")] == [60]
    assert set(tracked(look).values()) == {head_of(look)}
