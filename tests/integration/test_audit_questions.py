"""Answers at past instants: equal to a fold over the events, and the same for ever."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from adapters.postgres.writer import LedgerWriter
from domain import events
from domain.adjusting import ApproveAdjustment
from domain.errors import InvalidRequest, NotFound
from domain.eventsourced import Actor
from domain.journal import JournalEntry, JournalEntryPosted, credit, debit
from domain.wallet import HoldCaptured, HoldPlaced, HoldReleased
from projections.audit import entries, export, holds, marks, statement
from projections.audit import trial_balance as balances
from projections.audit.holds import HoldHistory
from projections.audit.instants import (
    AsOf,
    Stretch,
    at_head,
    at_position,
    at_time,
    between,
    head_of,
    parse_time,
    snapshot,
)
from projections.audit.marks import TrialBalanceMarks
from projections.audit.sources import EVENTS_ALONE, Sources, sources_of
from projections.journal import JournalLines
from projections.runner import ProjectionRunner
from tests.support import audit_fold as fold
from tests.support.ledger_commands import (
    MACHINE_ID,
    SECOND_ADMIN,
    account,
    admit,
    dispatch,
    grant,
    propose,
    settled_request,
)
from tests.support.ledger_tables import log_of
from tests.support.ledger_waiting import Connection
from tests.support.ledger_writers import running

pytest_plugins = ["tests.support.ledger_fixtures"]

BEGINNING = datetime(2026, 5, 1, tzinfo=UTC)


class Clock:
    """Goes on by a random moment with every batch, and sometimes stands still."""

    def __init__(self) -> None:
        self.now = BEGINNING
        self._random = random.Random(7)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=self._random.choice((0, 1, 999_999, 60_000_000)))
        return self.now


@pytest.fixture
def writer(ledger: str) -> Iterator[LedgerWriter]:
    with running(ledger, clock=Clock()) as writer:
        yield writer


@pytest.fixture
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks so dense that a small log has many of them."""
    monkeypatch.setattr(marks, "STRETCH_POSITIONS", 50)
    monkeypatch.setattr(balances, "STRETCH_POSITIONS", 50)


@contextmanager
def asking(look: Connection) -> Iterator[Connection]:
    with snapshot(look):
        yield look


def catch_up(url: str) -> None:
    ProjectionRunner(url, [JournalLines(), TrialBalanceMarks(), HoldHistory()]).catch_up()


def read_models_lag(look: Connection, url: str) -> None:
    """Nothing was read at all."""


def read_models_are_current(look: Connection, url: str) -> None:
    catch_up(url)


def adjust(writer: LedgerWriter, account_id: str, amount: int, effective_at: datetime, corrects: str = "") -> UUID:
    command = propose(account_id, amount, effective_at=effective_at, corrects_event_id=corrects)
    adjustment_id = command.adjustment_id
    writer.execute(command)
    writer.execute(
        ApproveAdjustment(actor=SECOND_ADMIN, correlation_id=str(adjustment_id), adjustment_id=adjustment_id)
    )
    return adjustment_id


# --- the past stays as it is -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_stretches")
def test_fifty_past_instants_answer_alike_before_and_after_a_thousand_more_operations(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    trade = fold.Trade(writer, seed=1)
    trade.go_on(400)
    catch_up(ledger)
    log = log_of(look)
    chance = random.Random(2)
    positions = [0, len(log), *(chance.randint(0, len(log)) for _ in range(23))]
    times = [event.recorded_at for event in chance.sample(log, 20)]
    times += [chance.choice(times) + timedelta(microseconds=chance.choice((-1, 1))) for _ in range(5)]

    def answers() -> list[Any]:
        found: list[Any] = []
        with asking(look):
            sources = sources_of(look)
            for position in positions:
                as_of = at_position(look, position)
                known = as_of
                found.append(balances.recorded(look, as_of, sources))
                found.append(statement_at(look, trade.accounts[position % 4], position, sources))
            for at in times:
                as_of = at_time(look, at)
                found.append(msgspec.structs.replace(balances.recorded(look, as_of, sources), final=True))
                found.append(balances.effective(look, at, known, sources))
        return found

    before = answers()
    for answer, position in zip(before[0:50:2], positions, strict=True):
        entries_so_far = [event for event in fold.entries_of(log) if event.position <= position]
        assert fold.shown(answer) == fold.trial_balance(entries_so_far)
        assert answer.committed_holds_micro_usd == fold.held(log, position)
        assert answer.balanced
    for answer, at in zip(before[50::2], times, strict=True):
        assert answer.position == fold.position_at(log, at)

    trade.go_on(1_000)
    for number in range(5):
        adjust(writer, trade.accounts[0], 100 + number, log[chance.randrange(len(log))].recorded_at)
    assert answers() == before  # the read models lag by everything since
    catch_up(ledger)
    assert answers() == before  # and now they do not


def statement_at(look: Connection, account_id: str, position: int, sources: Sources) -> list[Any]:
    stretch = Stretch(AsOf(0, BEGINNING, True), at_position(look, position))
    try:
        return pages_of(look, account_id, stretch, sources, limit=100)
    except NotFound:
        return []


def pages_of(
    look: Connection, account_id: str, stretch: Stretch, sources: Sources, limit: int
) -> list[statement.Statement]:
    cursor = ""
    pages = []
    while cursor is not None:
        page = statement.statement(look, account_id, stretch, sources, cursor=cursor, limit=limit)
        pages.append(page)
        cursor = page.next_cursor  # type: ignore[assignment]
    return pages


@pytest.mark.usefixtures("small_stretches")
@pytest.mark.parametrize("behind", [0, 7, 60, 10_000])
def test_an_answer_is_right_however_far_the_read_models_lag(
    ledger: str, writer: LedgerWriter, look: Connection, behind: int
) -> None:
    trade = fold.Trade(writer, seed=3)
    trade.go_on(150)
    catch_up(ledger)
    log = log_of(look)
    read = max(0, len(log) - behind)
    # What was read beyond this is as if it had not been
    look.execute("DELETE FROM journal_lines WHERE position > %s", (read,))
    look.execute("DELETE FROM hold_history WHERE placed_position > %s", (read,))
    look.execute("UPDATE hold_history SET ended_position = NULL WHERE ended_position > %s", (read,))
    look.execute("DELETE FROM trial_balance_marks WHERE (stretch + 1) * 50 > %s", (read,))
    look.execute("UPDATE projection_tracking SET position = %s", (read,))

    with asking(look):
        sources = sources_of(look)
        for position in range(0, len(log) + 1, 13):
            as_of = at_position(look, position)
            told = balances.recorded(look, as_of, sources)
            assert told == balances.recorded(look, as_of, EVENTS_ALONE)
            assert told.committed_holds_micro_usd == fold.held(log, position)
            for name in trade.accounts:
                for page in statement_at(look, name, position, sources):
                    closing = page.closing
                    assert fold.standing(log, name, position) == (
                        closing.balance_micro_usd,
                        closing.held_micro_usd,
                        closing.withdrawable_micro_usd,
                    )
        told_holds = holds.open_holds(look, sources, older_than_seconds=0, limit=1_000)
        assert told_holds == holds.open_holds(look, EVENTS_ALONE, older_than_seconds=0, limit=1_000)
        assert told_holds.total_micro_usd == fold.held(log, len(log))


# --- times -----------------------------------------------------------------------------------------------------------


def test_a_time_finds_the_last_position_recorded_at_or_before_it(writer: LedgerWriter, look: Connection) -> None:
    fold.Trade(writer, seed=4).go_on(60)
    log = log_of(look)
    moments = {event.recorded_at for event in log} | {BEGINNING - timedelta(days=1)}
    with asking(look):
        for moment in moments:
            for shift in (-1, 0, 1):
                at = moment + timedelta(microseconds=shift)
                assert at_time(look, at).position == fold.position_at(log, at)


def test_a_time_is_final_once_something_later_is_recorded_or_two_minutes_passed(ledger: str, look: Connection) -> None:
    database_now = look.execute("SELECT clock_timestamp()").fetchone()
    assert database_now is not None
    moment = database_now[0] - timedelta(seconds=30)
    with running(ledger, clock=lambda: moment) as writer:
        writer.execute(grant(account(), 5))
        with asking(look):
            assert at_time(look, moment - timedelta(microseconds=1)).final
            assert not at_time(look, moment).final
            assert at_time(look, moment - timedelta(seconds=200)).final
            assert not at_head(look).final
            assert at_position(look, 1).final


def test_the_future_and_positions_to_come_are_refused(look: Connection) -> None:
    with asking(look):
        with pytest.raises(InvalidRequest):
            at_time(look, head_of(look).now + timedelta(seconds=1))
        with pytest.raises(InvalidRequest):
            at_position(look, 1)
        assert at_position(look, 0).position == 0


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-05-31", "2026-05-31T23:59:59", "2026-13-01T00:00:00Z", "2026-05-31T23:59:59.1234567Z"],
)
def test_what_is_no_time_with_a_zone_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_time(text, "at")
    assert refused.value.param == "at"


def test_a_plus_that_a_query_turned_into_a_space_is_understood() -> None:
    expected = datetime(2026, 5, 31, 21, 59, 59, 123456, tzinfo=UTC)
    assert parse_time("2026-05-31T23:59:59.123456 02:00", "at") == expected


# --- what was true, and what was known -------------------------------------------------------------------------------


@pytest.mark.parametrize("read_models", [read_models_lag, read_models_are_current])
def test_a_correction_changes_what_was_effective_and_never_what_was_recorded(
    ledger: str, writer: LedgerWriter, look: Connection, read_models: Callable[[Connection, str], None]
) -> None:
    trade = fold.Trade(writer, seed=5)
    trade.go_on(60)
    past = log_of(look)[60].recorded_at
    known = len(log_of(look))
    adjust(writer, trade.accounts[0], 123, past)
    read_models(look, ledger)
    log = log_of(look)

    with asking(look):
        sources = sources_of(look)
        recorded = balances.recorded(look, at_time(look, past), sources)
        effective = balances.effective(look, past, at_head(look), sources)
        as_known_before = balances.effective(look, past, at_position(look, known), sources)

    dated = [event for event in fold.entries_of(log) if fold.effective_at(event) <= past]
    assert fold.shown(effective) == fold.trial_balance(dated)
    assert fold.shown(recorded) == fold.trial_balance(
        [event for event in fold.entries_of(log) if event.recorded_at <= past]
    )
    assert fold.shown(as_known_before) == fold.shown(recorded)
    assert fold.shown(effective) != fold.shown(recorded)
    assert (as_known_before.final, effective.final) == (True, False)


@pytest.mark.parametrize("read_models", [read_models_lag, read_models_are_current])
def test_an_entry_that_is_dated_after_its_recording_is_effective_only_then(
    ledger: str, writer: LedgerWriter, look: Connection, read_models: Callable[[Connection, str], None]
) -> None:
    """Domain time and recorded time come from two clocks, so this can be by a little."""
    writer.execute(grant("acct_1", 500))
    log = log_of(look)
    recorded_at, key = log[-1].recorded_at, "settle:late"
    posted = JournalEntryPosted(
        originator_id=JournalEntry.id_of(key),
        originator_version=1,
        schema_version=1,
        timestamp=recorded_at,
        actor=Actor("system", ""),
        correlation_id="",
        entry_key=key,
        kind="settlement",
        effective_at=recorded_at + timedelta(seconds=5),
        postings=(debit("2005", "acct_1", 20), credit("4000", "", 20)),
        reference="late",
        metadata={},
        reverses_entry_id=None,
    )
    look.execute(
        "INSERT INTO events VALUES (%s, %s, 1, %s, %s, %s)",
        (len(log) + 1, posted.originator_id, posted.TOPIC, recorded_at, events.encode(posted)),
    )
    look.execute("UPDATE ledger_head SET position = %s", (len(log) + 1,))
    read_models(look, ledger)

    with asking(look):
        sources, head = sources_of(look), at_head(look)
        known = balances.recorded(look, at_time(look, recorded_at), sources)
        before = balances.effective(look, recorded_at, head, sources)
        then = balances.effective(look, posted.effective_at, head, sources)

    assert fold.shown(known) == fold.shown(then)
    assert fold.shown(before) == fold.trial_balance(fold.entries_of(log))


# --- statements ------------------------------------------------------------------------------------------------------


def test_what_covers_open_holds_cannot_be_withdrawn(writer: LedgerWriter, look: Connection) -> None:
    # Given an account that earned 700 and has no credit, and holds 500 of it
    writer.execute(grant("consumer", 1_000))
    settled_request(writer, "consumer", hold=700, cost=700, provider="earner")
    writer.execute(admit("earner", 500))
    # When it gets 100 of credit, which cover a part of the hold
    writer.execute(grant("earner", 100))

    with asking(look):
        told = statement.statement(look, "earner", between(look, None, None), EVENTS_ALONE, cursor="", limit=10)

    assert [(line.balance_after_micro_usd, line.withdrawable_after_micro_usd) for line in told.lines] == [
        (700, 700),
        (800, 300),
    ]
    assert (told.closing.held_micro_usd, told.closing.withdrawable_micro_usd) == (500, 300)


@pytest.mark.parametrize("limit", [1, 3, 1_000])
def test_a_statement_adds_up_over_its_pages(ledger: str, writer: LedgerWriter, look: Connection, limit: int) -> None:
    trade = fold.Trade(writer, seed=6)
    trade.go_on(120)
    catch_up(ledger)
    trade.go_on(30)
    log = log_of(look)
    start, end = log[len(log) // 3].recorded_at, log[2 * len(log) // 3].recorded_at
    name = trade.accounts[1]

    with asking(look):
        pages = pages_of(look, name, between(look, start, end), sources_of(look), limit)
    lines = [line for page in pages for line in page.lines]

    opening, closing = pages[0].opening, pages[0].closing
    assert all((page.opening, page.closing) == (opening, closing) for page in pages)
    assert opening.position == fold.position_at(log, start)
    assert closing.position == fold.position_at(log, end)
    assert opening.balance_micro_usd + sum(line.amount_micro_usd for line in lines) == closing.balance_micro_usd
    expected = [
        event.position
        for event in fold.entries_of(log)
        if opening.position < event.position <= closing.position
        and any(sub_account == name for _, sub_account, _, _ in fold.postings_of(event))
    ]
    assert [line.position for line in lines] == expected
    for line in lines:
        balance, _, withdrawable = fold.standing(log, name, line.position)
        assert (line.balance_after_micro_usd, line.withdrawable_after_micro_usd) == (balance, withdrawable)


def test_a_machine_that_nobody_claimed_has_a_statement_too(writer: LedgerWriter, look: Connection) -> None:
    consumer = account()
    writer.execute(grant(consumer, 500))
    settled_request(writer, consumer, hold=300, cost=200)
    with asking(look):
        stretch = between(look, None, None)
        # Given a machine that is known by its money alone, nobody would find it: it registers when it connects
        with pytest.raises(NotFound):
            statement.statement(look, "no-such-account", stretch, EVENTS_ALONE, cursor="", limit=10)
        found = entries.search(
            look, stretch, entries.Filters(code="2190", account=MACHINE_ID), EVENTS_ALONE, cursor="", limit=10
        )
    assert [one.kind for one in found.entries] == ["settlement"]


@pytest.mark.parametrize("cursor", ["!", "abc", "MQ", "MS4yLjM0.", "LTEuMi4z"])
def test_a_cursor_of_somebody_else_is_refused(writer: LedgerWriter, look: Connection, cursor: str) -> None:
    writer.execute(grant("acct_1", 5))
    with asking(look), pytest.raises(InvalidRequest):
        statement.statement(look, "acct_1", between(look, None, None), EVENTS_ALONE, cursor=cursor, limit=10)


# --- entries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_models", [read_models_lag, read_models_are_current])
def test_a_search_finds_exactly_the_entries_with_such_a_posting(
    ledger: str, writer: LedgerWriter, look: Connection, read_models: Callable[[Connection, str], None]
) -> None:
    trade = fold.Trade(writer, seed=8)
    trade.go_on(120)
    read_models(look, ledger)
    log = fold.entries_of(log_of(look))
    some = next(event for event in log if event.payload["kind"] == "settlement")
    filters: list[tuple[entries.Filters, Callable[[Any, Any], bool]]] = [
        (entries.Filters(), lambda event, posting: True),
        (entries.Filters(kind="settlement"), lambda event, posting: event.payload["kind"] == "settlement"),
        (entries.Filters(code="2100"), lambda event, posting: posting[0] == "2100"),
        (entries.Filters(code="2100", account="acct_1"), lambda event, posting: posting[:2] == ("2100", "acct_1")),
        (
            entries.Filters(reference=some.payload["reference"]),
            lambda event, posting: event.payload["reference"] == some.payload["reference"],
        ),
        (
            entries.Filters(account="acct_2", least_micro_usd=500, most_micro_usd=2_000),
            lambda event, posting: posting[1] == "acct_2" and 500 <= posting[2] + posting[3] <= 2_000,
        ),
    ]
    with asking(look):
        sources = sources_of(look)
        for asked, is_it in filters:
            found, cursor = [], ""
            while cursor is not None:
                page = entries.search(look, between(look, None, None), asked, sources, cursor=cursor, limit=7)
                found += page.entries
                cursor = page.next_cursor  # type: ignore[assignment]
            expected = [event.position for event in log if any(is_it(event, line) for line in fold.postings_of(event))]
            assert [one.position for one in found] == expected


def test_an_entry_is_shown_with_its_causes_and_corrections(writer: LedgerWriter, look: Connection) -> None:
    consumer, provider = account("consumer"), account("provider")
    writer.execute(grant(consumer, 5_000, "first"))
    adjustment_id = None
    with asking(look):
        granted = entries.entry(look, "credit:first")
    adjustment_id = adjust(writer, consumer, -100, BEGINNING, f"{granted.entry.entry_id}/1")

    with asking(look):
        by_key = entries.entry(look, "credit:first")
        by_id = entries.entry(look, str(granted.entry.entry_id))
        adjusted = entries.entry(look, f"adjust:{adjustment_id}")
        with pytest.raises(NotFound):
            entries.entry(look, "credit:second")

    assert by_key == by_id
    assert [(found.adjustment_id, found.status) for found in by_key.corrections] == [(str(adjustment_id), "approved")]
    assert by_key.corrections[0].entry_id == adjusted.entry.entry_id
    assert [event.topic for event in adjusted.causing_events] == [
        "Adjustment.AdjustmentProposed",
        "Wallet.WalletAdjusted",
        "Adjustment.AdjustmentApproved",
    ]
    assert adjusted.previous is not None
    assert adjusted.previous.topic == "Wallet.WalletAdjusted"
    assert {(line.code, line.debit_micro_usd, line.credit_micro_usd) for line in adjusted.entry.postings} == {
        ("2005", 100, 0),
        ("5030", 0, 100),
    }
    assert provider != consumer


# --- holds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_models", [read_models_lag, read_models_are_current])
def test_open_holds_are_told_by_age_with_their_newest_job(
    ledger: str, writer: LedgerWriter, look: Connection, read_models: Callable[[Connection, str], None]
) -> None:
    consumer = account()
    writer.execute(grant(consumer, 5_000))
    settled_request(writer, consumer, hold=100, cost=50)
    old, young = admit(consumer, 300), admit(consumer, 200)
    writer.execute(old)
    writer.execute(dispatch(old.request_id, 1))
    writer.execute(dispatch(old.request_id, 2))
    writer.execute(young)
    read_models(look, ledger)

    with asking(look):
        sources = sources_of(look)
        every = holds.open_holds(look, sources, older_than_seconds=0, limit=10)
        first = holds.open_holds(look, sources, older_than_seconds=0, limit=1)
        none = holds.open_holds(look, sources, older_than_seconds=10**9, limit=10)

    assert [hold.hold_id for hold in every.holds] == [str(old.request_id), str(young.request_id)]
    dispatched = [event.payload["job_id"] for event in log_of(look) if event.name == "JobDispatched"]
    assert [hold.job_id for hold in every.holds] == [dispatched[-1], ""]
    assert (every.count, every.total_micro_usd) == (2, 500)
    assert (first.count, len(first.holds)) == (2, 1)
    assert (none.count, none.holds) == (0, [])


# --- exports ---------------------------------------------------------------------------------------------------------


def exported(look: Connection, what: str, format_: str) -> bytes:
    with asking(look):
        return b"".join(export.export(look, between(look, None, None), what=what, format_=format_))


@pytest.mark.parametrize("what", list(export.KINDS))
@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_an_export_ends_with_its_own_totals_and_hash(
    writer: LedgerWriter, look: Connection, what: str, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE_EVENTS", 17)
    fold.Trade(writer, seed=9).go_on(120)
    log = log_of(look)

    content = exported(look, what, format_)

    *lines, last = content.splitlines(keepends=True)
    trailer = json.loads(last.removeprefix(b"# "))["trailer"]
    assert last.startswith(b"# ") == (format_ == "csv")
    assert trailer["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()
    assert trailer["upto_position"] == len(log)
    settled = [event for event in log if event.name == "RequestSettled"]
    expected: dict[str, list[tuple[int, int]]] = {
        "entries": [(e.position, sum(line[2] for line in fold.postings_of(e))) for e in fold.entries_of(log)],
        "events": [
            (e.position, sum(line[2] for line in fold.postings_of(e)) if e.name == "JournalEntryPosted" else 0)
            for e in log
        ],
        "usage": [(e.position, e.payload["cost"]) for e in settled if not e.payload["free"]],
        "earnings": [(e.position, e.payload["provider_amount"]) for e in settled if e.payload["provider_amount"]],
        "withdrawals": [],
    }
    rows = expected[what]
    assert trailer["rows"] == len(rows)
    assert trailer["sum_of_debits_micro_usd"] == sum(debits for _, debits in rows)
    assert trailer["first_position"] == (rows[0][0] if rows else None)
    assert trailer["last_position"] == (rows[-1][0] if rows else None)
    text = b"".join(lines).decode()
    read = (
        [json.loads(line) for line in text.splitlines()]
        if format_ == "jsonl"
        else list(csv.DictReader(io.StringIO(text)))
    )
    found = dict.fromkeys(int(row["position"]) for row in read)
    assert list(found) == [position for position, _ in rows]


def test_exported_events_carry_their_stored_bytes(writer: LedgerWriter, look: Connection) -> None:
    fold.Trade(writer, seed=10).go_on(20)
    stored = [bytes(row[0]) for row in look.execute("SELECT state FROM events ORDER BY position")]
    lines = exported(look, "events", "jsonl").splitlines()[:-1]
    assert [line[line.index(b'"state":') + 8 : -1] for line in lines] == stored


def test_a_text_that_a_spreadsheet_would_run_is_exported_as_text(writer: LedgerWriter, look: Connection) -> None:
    writer.execute(grant("acct_1", 5, '=HYPERLINK("http://x")'))
    rows = list(csv.DictReader(io.StringIO(exported(look, "entries", "csv").decode())))
    assert rows[0]["reference"] == '\'=HYPERLINK("http://x")'


# --- the SQL and the events ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [JournalEntryPosted, HoldPlaced, HoldCaptured, HoldReleased])
def test_the_sql_that_reads_events_knows_their_version(cls: Any) -> None:
    """projections/audit/sources.py reads these events' JSON itself; a new version has to be taught to it."""
    assert cls.SCHEMA_VERSION == 1
