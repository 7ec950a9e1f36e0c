"""The group-commit writer on a real PostgreSQL: what it answers is what the log says, whatever breaks in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres import writer as writer_module
from adapters.postgres.writer import LedgerWriter
from domain.errors import Conflict, DarkbloomError, InsufficientFunds, InternalError, LedgerBusy, LedgerUnavailable
from domain.eventsourced import Ref, ref
from domain.ledger import Balance, Command, OpenAccount, Operation, Unit
from domain.requests import RequestAdmitted, RequestReleased, RequestSettled, job_id_of
from domain.wallet import PromotionalCreditGranted, Wallet
from tests.support.ledger_commands import account, admit, dispatch, grant, release, settle, settled_request
from tests.support.ledger_proxy import Cut, PostgresProxy
from tests.support.ledger_tables import (
    assert_books_are_sound,
    balance_of,
    head_of,
    log_of,
    names_of,
    open_requests,
    usage,
    wallets,
)
from tests.support.ledger_waiting import (
    Connection,
    head_locked,
    in_thread,
    terminate_sessions,
    until,
    until_sessions_wait,
    within,
)
from tests.support.ledger_writers import Sabotage, first_batch, make_writer, running, start_with
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures"]


class RecordThenRaise(Operation[None], frozen=True, kw_only=True):
    """Grants credit and then fails, as a command with a late check or a bug does."""

    account_id: str
    error: Exception

    def needs(self) -> Sequence[Ref]:
        return (ref(Wallet, self.account_id),)

    def decide(self, unit: Unit) -> None:
        unit.record(
            unit.get(Wallet, self.account_id),
            PromotionalCreditGranted,
            account_id=self.account_id,
            amount=1_000_000,
            source="admin_credit",
            reference="never",
        )
        raise self.error


def answer_to(writer: LedgerWriter, command: Command[Any]) -> Any:
    """A command's result, or the error that its caller got."""
    try:
        return writer.execute(command)
    except DarkbloomError as error:
        return error


# --- reading one's own writes ----------------------------------------------------------------------------------------


def test_balance_usage_and_open_requests_show_each_write_at_once(writer: LedgerWriter, look: Connection) -> None:
    consumer, provider, request_id = account("consumer"), account("provider"), uuid4()

    writer.execute(grant(consumer, 1_000))
    assert balance_of(look, consumer) == 1_000

    writer.execute(admit(consumer, 400, request_id))
    assert wallets(look)[consumer] == (2, 600, 0, 400)
    assert list(open_requests(look)) == [request_id]

    writer.execute(dispatch(request_id, provider=provider))
    writer.execute(settle(consumer, request_id, 150))
    assert wallets(look)[consumer] == (3, 850, 0, 0)
    assert wallets(look)[provider] == (1, 150, 150, 0)
    assert open_requests(look) == {}
    assert usage(look)[job_id_of(request_id, 1)][:7] == (consumer, 0, 150, 0, "", 0, 150)
    assert_books_are_sound(look)


def test_a_settlement_is_one_transaction_with_its_journal_entry(writer: LedgerWriter, look: Connection) -> None:
    consumer = account()
    writer.execute(grant(consumer, 500))

    settled_request(writer, consumer, hold=500, cost=200, provider=account("provider"))

    log = log_of(look)
    end = [event for event in log if event.recorded_at == log[-1].recorded_at]
    assert [event.name for event in end] == [
        "JobCompleted",
        "RequestSettled",
        "HoldCaptured",
        "EarningCredited",
        "JournalEntryPosted",
    ]


# --- one batch, many commands ----------------------------------------------------------------------------------------


def test_a_refused_command_changes_nothing_for_its_neighbours(ledger: str, look: Connection) -> None:
    rich, poor = account("rich"), account("poor")
    batch = [grant(rich, 300), admit(poor, 1), admit(rich, 200), admit(rich, 200), admit(rich, 100)]

    with first_batch(ledger, batch) as (writer, answers):
        granted, refused_poor, first, refused_rich, last = answers
        assert granted == Balance(300, 0)
        assert isinstance(first, RequestAdmitted)
        assert isinstance(last, RequestAdmitted)
        assert isinstance(refused_poor, InsufficientFunds)
        assert isinstance(refused_rich, InsufficientFunds)
        # The cache is true as well: the next decision on both wallets is right.
        assert isinstance(answer_to(writer, admit(rich, 1)), InsufficientFunds)
        assert writer.execute(grant(poor, 5)) == Balance(5, 0)

    assert set(open_requests(look)) == {UUID(first.request_id), UUID(last.request_id)}
    assert_books_are_sound(look)


@pytest.mark.parametrize(
    ("raised", "answered"),
    [
        pytest.param(Conflict("refused late"), Conflict, id="a refusal"),
        pytest.param(ZeroDivisionError("a bug"), InternalError, id="a bug"),
        pytest.param(KeyError("a bug"), InternalError, id="another bug"),
    ],
)
def test_a_command_that_fails_after_it_recorded_leaves_no_trace(
    ledger: str, look: Connection, raised: Exception, answered: type[Exception]
) -> None:
    mine, other = account("mine"), account("other")
    failing = RecordThenRaise(account_id=mine, error=raised)

    with first_batch(ledger, [grant(mine, 10), failing, grant(other, 7), failing, grant(mine, 20)]) as (
        writer,
        answers,
    ):
        assert [answers[0], answers[2], answers[4]] == [Balance(10, 0), Balance(7, 0), Balance(30, 0)]
        assert [type(answers[1]), type(answers[3])] == [answered, answered]
        assert isinstance(answer_to(writer, failing), answered)
        assert isinstance(answer_to(writer, admit(mine, 31)), InsufficientFunds)
        assert isinstance(answer_to(writer, admit(mine, 30)), RequestAdmitted)

    assert_books_are_sound(look)
    assert balance_of(look, mine) == 0


def test_a_bug_tells_its_caller_nothing_of_its_inside(ledger: str) -> None:
    with running(ledger) as writer, pytest.raises(InternalError) as caught:
        writer.execute(RecordThenRaise(account_id=account(), error=ValueError("a secret value")))

    assert "secret" not in str(caught.value)


def test_a_batch_in_which_nobody_records_anything_moves_nothing(ledger: str, look: Connection) -> None:
    poor = account()

    with first_batch(ledger, [admit(poor, 1), admit(poor, 2)]) as (writer, answers):
        assert [type(answer) for answer in answers] == [InsufficientFunds, InsufficientFunds]
        assert head_of(look) == 0
        assert writer.execute(grant(poor, 5)) == Balance(5, 0)

    assert_books_are_sound(look)


def test_an_admission_over_the_balance_is_refused_and_nothing_is_recorded(
    writer: LedgerWriter, look: Connection
) -> None:
    consumer, request_id = account(), uuid4()
    writer.execute(grant(consumer, 1_000))
    before = log_of(look)

    with pytest.raises(InsufficientFunds):
        writer.execute(admit(consumer, 1_001, request_id))

    assert log_of(look) == before
    assert open_requests(look) == {}
    assert balance_of(look, consumer) == 1_000


def test_a_refused_admission_may_be_repeated_under_its_own_id(writer: LedgerWriter, look: Connection) -> None:
    consumer, request_id = account(), uuid4()
    with pytest.raises(InsufficientFunds):
        writer.execute(admit(consumer, 5, request_id))

    writer.execute(grant(consumer, 5))

    assert writer.execute(admit(consumer, 5, request_id)).reserved == 5
    assert_books_are_sound(look)


# --- duplicates ------------------------------------------------------------------------------------------------------


class Duplicate:
    """An operation on a prepared account: what must come before it, and the command that is sent twice."""

    def __init__(self, operation: str) -> None:
        self.consumer, self.request_id = account(), uuid4()
        self.before: list[Command[Any]] = [grant(self.consumer, 100)]
        if operation == "GrantCredit":
            self.command: Command[Any] = grant(self.consumer, 11, "reference-of-the-grant-" + self.consumer)
            return
        self.command = admit(self.consumer, 60, self.request_id)
        if operation == "Admit":
            return
        self.before += [self.command, dispatch(self.request_id)]
        self.command = release(self.consumer, self.request_id)
        if operation == "Settle":
            self.command = settle(self.consumer, self.request_id, 25)


OPERATIONS = ["GrantCredit", "Admit", "Settle", "Release"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_repeated_command_gets_the_first_result_and_records_nothing(
    writer: LedgerWriter, look: Connection, operation: str
) -> None:
    given_ = Duplicate(operation)
    for command in given_.before:
        writer.execute(command)
    first = writer.execute(given_.command)
    recorded = log_of(look)

    second = writer.execute(given_.command)

    assert second == first
    assert log_of(look) == recorded
    assert_books_are_sound(look)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_command_that_is_twice_in_one_batch_is_done_once(ledger: str, look: Connection, operation: str) -> None:
    given_ = Duplicate(operation)

    with first_batch(ledger, [*given_.before, given_.command, given_.command]) as (_, answers):
        assert answers[-1] == answers[-2]
        assert not isinstance(answers[-1], Exception)

    names = names_of(look)
    assert len(names) == len({(event.originator_id, event.version) for event in log_of(look)})
    assert names.count("HoldPlaced") == (operation != "GrantCredit")
    assert names.count("PromotionalCreditGranted") == 1 + (operation == "GrantCredit")
    assert_books_are_sound(look)


@pytest.mark.parametrize("knows", ["an empty cache", "a cache from before"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_command_that_another_writer_ran_gets_that_writers_result(
    ledger: str, look: Connection, operation: str, knows: str
) -> None:
    given_ = Duplicate(operation)
    with running(ledger) as one, running(ledger) as other:
        for command in given_.before:
            one.execute(command)
        if knows == "a cache from before":
            for command in given_.before:
                other.execute(command)
        first = one.execute(given_.command)
        recorded = log_of(look)

        second = other.execute(given_.command)

        assert second == first
        assert log_of(look) == recorded
        assert_books_are_sound(look)


def test_a_second_end_finds_the_first_whichever_it_was(writer: LedgerWriter, look: Connection) -> None:
    consumer = account()
    settled, released = uuid4(), uuid4()
    writer.execute(grant(consumer, 100))
    for request_id in (settled, released):
        writer.execute(admit(consumer, 40, request_id))
        writer.execute(dispatch(request_id))
    settlement = writer.execute(settle(consumer, settled, 30))
    end = writer.execute(release(consumer, released))
    recorded = log_of(look)

    assert writer.execute(release(consumer, settled)) == settlement
    assert writer.execute(settle(consumer, released, 30)) == end

    assert isinstance(settlement, RequestSettled)
    assert isinstance(end, RequestReleased)
    assert log_of(look) == recorded
    assert balance_of(look, consumer) == 70


# --- the database refuses a batch ------------------------------------------------------------------------------------

FAILURES = {
    "a wrong statement": "SELECT 1 / 0",
    "a broken rule": "INSERT INTO ledger_head (singleton, position, recorded_at) VALUES (true, 0, now())",
    "a missing table": "SELECT * FROM no_such_table",
    "a cancelled statement": "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'query_canceled'; END $$",
    "a killed session": "SELECT pg_terminate_backend(pg_backend_pid())",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_batch_that_the_database_refuses_fails_as_a_whole_and_may_be_repeated(
    ledger: str, look: Connection, failure: str
) -> None:
    sabotage, consumer, spent = Sabotage(), account(), uuid4()
    sabotage.next = FAILURES[failure]
    batch = [grant(consumer, 100), admit(consumer, 100, spent), OpenAccount(account_id=consumer)]

    with first_batch(ledger, batch, sabotage) as (writer, answers):
        # Then every caller may try again, and nothing is there.
        assert [type(answer) for answer in answers] == [LedgerUnavailable] * 3
        assert all(answer.retry_after_seconds for answer in answers)
        assert log_of(look) == []
        assert wallets(look) == {}
        # And the next decisions are made on the truth: no credit was granted, no hold stands.
        assert isinstance(answer_to(writer, admit(consumer, 1)), InsufficientFunds)
        assert [writer.execute(command) for command in batch[:1]] == [Balance(100, 0)]
        assert writer.execute(admit(consumer, 100, spent)).reserved == 100
        assert writer.execute(OpenAccount(account_id=consumer)) is True

    assert_books_are_sound(look)


def test_a_failed_batch_does_not_spoil_what_the_cache_knew_before(ledger: str, look: Connection) -> None:
    sabotage, consumer = Sabotage(), account()
    with running(ledger, sabotage) as writer:
        writer.execute(grant(consumer, 100))

        sabotage.next = FAILURES["a wrong statement"]
        with pytest.raises(LedgerUnavailable):
            writer.execute(admit(consumer, 100))

        assert writer.execute(admit(consumer, 100)).reserved == 100
        assert isinstance(answer_to(writer, admit(consumer, 1)), InsufficientFunds)
    assert_books_are_sound(look)


def test_nobody_is_refused_because_of_a_neighbour_that_was_never_written(ledger: str, look: Connection) -> None:
    # Given a balance for one admission
    sabotage, consumer = Sabotage(), account()
    with running(ledger, sabotage) as writer:
        writer.execute(grant(consumer, 100))
    # When two admissions share a batch, and the database refuses the batch
    sabotage.next = FAILURES["a wrong statement"]
    with first_batch(ledger, [admit(consumer, 100), admit(consumer, 100)], sabotage) as (_, answers):
        # Then the second was not turned away for want of money: the whole balance is there.
        assert balance_of(look, consumer) == 100
        assert [type(answer) for answer in answers] == [LedgerUnavailable, LedgerUnavailable]


# --- the connection breaks -------------------------------------------------------------------------------------------


def test_a_session_killed_while_idle_costs_at_most_one_retry(writer: LedgerWriter, look: Connection) -> None:
    consumer = account()
    writer.execute(grant(consumer, 1_000))
    for _ in range(3):
        request_id = uuid4()
        assert terminate_sessions(look) == 1

        answer = answer_to(writer, admit(consumer, 100, request_id))

        assert isinstance(answer, RequestAdmitted | LedgerUnavailable)
        assert (request_id in open_requests(look)) == isinstance(answer, RequestAdmitted)
        assert writer.execute(admit(consumer, 100, request_id)).request_id == str(request_id)
        assert_books_are_sound(look)
    assert balance_of(look, consumer) == 700


def test_a_session_killed_while_it_waits_for_the_head_leaves_nothing_half_done(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    consumer, request_id = account(), uuid4()
    writer.execute(grant(consumer, 100))
    with head_locked(ledger):
        answer = in_thread(lambda: answer_to(writer, admit(consumer, 100, request_id)))
        until_sessions_wait(look, 1)

        assert terminate_sessions(look, "wait_event_type = 'Lock'") == 1

        got = answer.result(30)
    assert isinstance(got, RequestAdmitted | LedgerUnavailable)
    assert (request_id in open_requests(look)) == isinstance(got, RequestAdmitted)
    assert_books_are_sound(look)
    assert writer.execute(admit(consumer, 100, request_id)).reserved == 100
    assert_books_are_sound(look)


def test_a_commit_whose_answer_is_lost_is_found_and_reported_as_done(ledger: str, look: Connection) -> None:
    consumer, request_id = account(), uuid4()
    with PostgresProxy(ledger) as network, running(network.url) as writer:
        writer.execute(grant(consumer, 100))

        network.cut_at_next_commit(Cut.AFTER_COMMIT)
        admitted = writer.execute(admit(consumer, 100, request_id))

        assert network.has_cut.is_set()
        assert admitted.request_id == str(request_id)
        assert names_of(look, request_id) == ["HoldPlaced", "RequestAdmitted"]
        # And the writer goes on from there.
        assert isinstance(answer_to(writer, admit(consumer, 1)), InsufficientFunds)
        writer.execute(release(consumer, request_id))
    assert balance_of(look, consumer) == 100
    assert_books_are_sound(look)


def test_after_a_lost_answer_each_caller_of_the_batch_gets_what_is_its_own(ledger: str, look: Connection) -> None:
    consumer, request_id = account(), uuid4()
    with PostgresProxy(ledger) as network:
        network.cut_at_next_commit(Cut.AFTER_COMMIT)
        batch = [grant(consumer, 100), admit(consumer, 60, request_id), admit(consumer, 60), grant(consumer, 1)]

        with first_batch(network.url, batch) as (_, answers):
            granted, admitted, refused, topped_up = answers

    assert network.has_cut.is_set()
    assert (granted, topped_up) == (Balance(100, 0), Balance(41, 0))
    assert admitted.request_id == str(request_id)
    assert isinstance(refused, InsufficientFunds)
    assert_books_are_sound(look)
    assert balance_of(look, consumer) == 41


def test_a_commit_that_never_arrived_is_reported_as_not_done(ledger: str, look: Connection) -> None:
    consumer, request_id = account(), uuid4()
    with PostgresProxy(ledger) as network, running(network.url) as writer:
        writer.execute(grant(consumer, 100))

        network.cut_at_next_commit(Cut.BEFORE_COMMIT)
        with pytest.raises(LedgerUnavailable):
            writer.execute(admit(consumer, 100, request_id))

        assert network.has_cut.is_set()
        assert names_of(look, request_id) == []
        assert balance_of(look, consumer) == 100
        # And the caller may repeat it.
        assert writer.execute(admit(consumer, 100, request_id)).reserved == 100
    assert_books_are_sound(look)


def test_a_lost_commit_is_not_taken_for_done_when_another_writer_has_its_place_in_the_log(
    ledger: str, look: Connection
) -> None:
    consumer, request_id = account(), uuid4()
    with PostgresProxy(ledger) as network, running(network.url) as writer, running(ledger) as other:
        writer.execute(grant(consumer, 100))
        with head_locked(ledger):
            network.cut_at_next_commit(Cut.BEFORE_COMMIT)
            answer = in_thread(lambda: answer_to(writer, admit(consumer, 100, request_id)))
            until_sessions_wait(look, 1)
            others = in_thread(lambda: other.execute(admit(consumer, 100)))
            until_sessions_wait(look, 2)

        # Waiters get the head in turn: the lost batch and the other one contend for the same position.
        assert isinstance(answer.result(30), LedgerUnavailable)
        assert others.result(30).account_id == consumer
        assert network.has_cut.is_set()
        assert isinstance(answer_to(writer, admit(consumer, 100, request_id)), InsufficientFunds)
    assert_books_are_sound(look)


@pytest.mark.parametrize("fate", ["commits", "dies"])
def test_a_lost_session_that_still_runs_is_waited_for_before_anybody_is_answered(
    ledger: str, look: Connection, fate: str
) -> None:
    consumer, request_id = account(), uuid4()
    with PostgresProxy(ledger) as network, running(network.url) as writer:
        writer.execute(grant(consumer, 100))
        # Given a batch that is on its way to its commit and stands still before a locked row
        with psycopg.connect(ledger) as blocker:
            blocker.execute("SELECT FROM wallet_balances WHERE account_id = %s FOR UPDATE", (consumer,))
            # When the writer loses that session while the server goes on with it
            network.cut_at_next_commit(Cut.WHILE_RUNNING)
            answer = in_thread(lambda: answer_to(writer, admit(consumer, 100, request_id)))
            until_sessions_wait(look, 2)  # the lost session for the row, the writer's new one for the head
            assert network.has_cut.is_set()
            assert not answer.done()
            if fate == "dies":
                assert terminate_sessions(look, "wait_event_type = 'Lock' AND query LIKE '%wallet_balances%'") == 1
            blocker.rollback()
            # Then the answer is what became of that session.
            got = answer.result(30)
        assert isinstance(got, RequestAdmitted if fate == "commits" else LedgerUnavailable)
        assert (request_id in open_requests(look)) == (fate == "commits")
        assert_books_are_sound(look)
        assert writer.execute(admit(consumer, 100, request_id)).reserved == 100
    assert_books_are_sound(look)


def test_an_outcome_that_nobody_can_tell_is_reported_as_retryable_and_repeating_is_safe(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, request_id = account(), uuid4()
    monkeypatch.setattr(writer_module, "OUTCOME_SECONDS_MAX", 0.0)  # the database stays away for longer than that
    with PostgresProxy(ledger) as network, running(network.url) as writer:
        writer.execute(grant(consumer, 100))
        network.cut_at_next_commit(Cut.AFTER_COMMIT)

        with pytest.raises(LedgerUnavailable):
            writer.execute(admit(consumer, 100, request_id))

        assert request_id in open_requests(look)
        assert writer.execute(admit(consumer, 100, request_id)).reserved == 100
    assert names_of(look, request_id) == ["HoldPlaced", "RequestAdmitted"]
    assert_books_are_sound(look)


def test_a_server_that_is_not_there_is_reported_and_the_writer_comes_back_with_it(
    ledger: str, look: Connection
) -> None:
    consumer = account()
    with PostgresProxy(ledger) as network:
        url = network.url
        with running(url) as writer:
            writer.execute(grant(consumer, 100))
    # The proxy is gone, as a server that is restarted.
    with running(url) as writer:
        with pytest.raises(LedgerUnavailable):
            writer.execute(admit(consumer, 1))
        assert isinstance(answer_to(writer, grant(consumer, 1)), LedgerUnavailable)
    assert balance_of(look, consumer) == 100


# --- coroutines ------------------------------------------------------------------------------------------------------


async def test_a_coroutine_that_waits_for_its_commit_does_not_stop_its_loop(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    consumer = account()
    with head_locked(ledger):
        waiting = asyncio.create_task(writer.run(grant(consumer, 100)))
        await asyncio.to_thread(until_sessions_wait, look, 1)
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not waiting.done()

    assert await waiting == Balance(100, 0)


async def test_hundreds_of_coroutines_get_each_their_own_answer(writer: LedgerWriter, look: Connection) -> None:
    consumers = [account() for _ in range(200)]

    answers = await asyncio.gather(*(writer.run(grant(one, at)) for at, one in enumerate(consumers, 1)))

    assert answers == [Balance(at, 0) for at in range(1, 201)]
    assert_books_are_sound(look)


async def test_a_coroutine_that_stops_waiting_takes_nobody_with_it(ledger: str, look: Connection) -> None:
    writer = make_writer(ledger)
    mine, other = account("mine"), account("other")
    impatient = asyncio.create_task(writer.run(grant(mine, 1)))
    patient = asyncio.create_task(writer.run(grant(other, 2)))
    await asyncio.sleep(0)
    impatient.cancel()
    with suppress(asyncio.CancelledError):
        await impatient
    writer.start()
    try:
        assert await patient == Balance(2, 0)
        assert await writer.run(grant(other, 3)) == Balance(5, 0)
    finally:
        await asyncio.to_thread(writer.stop)
    assert balance_of(look, mine) == 1  # what was asked for was done, though nobody waits for it any more
    assert_books_are_sound(look)


def test_a_loop_that_ended_before_its_answer_came_does_not_stop_the_writer(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    gone, here = account("gone"), account("here")

    async def ask_and_leave() -> None:
        waiting = asyncio.create_task(writer.run(grant(gone, 1)))
        await asyncio.sleep(0)
        waiting.cancel()

    with head_locked(ledger):
        asyncio.run(ask_and_leave())
        later = in_thread(lambda: writer.execute(grant(here, 2)))
        until_sessions_wait(look, 1)

    assert later.result(30) == Balance(2, 0)
    assert balance_of(look, gone) == 1


def test_a_loop_that_ends_at_the_very_moment_of_its_answer_does_not_stop_the_writer(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndingLoop(asyncio.SelectorEventLoop):
        """Says that it is open, and is closed when the answer is handed to it."""

        handed, ending = threading.Event(), True

        def _is_handed_an_answer(self) -> bool:
            return self.ending and threading.current_thread().name == "ledger-writer"

        def is_closed(self) -> bool:
            return not self._is_handed_an_answer() and super().is_closed()

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
            if self._is_handed_an_answer():
                self.handed.set()
                raise RuntimeError("Event loop is closed")
            return super().call_soon_threadsafe(*args, **kwargs)

    ended: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    loop, gone, here = EndingLoop(), account("gone"), account("here")
    with running(ledger) as writer:
        waiting = loop.create_task(writer.run(grant(gone, 1)))
        loop.run_until_complete(asyncio.sleep(0, loop))
        try:
            until(loop.handed.is_set, "the writer handed its answer over")

            after = in_thread(lambda: writer.execute(grant(here, 2), timeout_seconds=20))
            until(lambda: after.done() or ended, "the writer answered or ended")
        finally:
            loop.ending = False
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(waiting)
            loop.close()

        assert not ended, "the writer's thread ended"
        assert after.result() == Balance(2, 0)


# --- limits and the end ----------------------------------------------------------------------------------------------


async def test_one_command_more_than_may_wait_is_turned_away_and_the_rest_is_done(
    ledger: str, look: Connection
) -> None:
    writer, consumer = make_writer(ledger, queue_max=3), account()
    waiting = [asyncio.create_task(writer.run(grant(consumer, 1))) for _ in range(3)]
    await asyncio.sleep(0)

    with pytest.raises(LedgerBusy):
        await writer.run(grant(consumer, 1_000))
    with pytest.raises(LedgerBusy):
        writer.execute(grant(consumer, 1_000))

    writer.start()
    try:
        assert await asyncio.gather(*waiting) == [Balance(1, 0), Balance(2, 0), Balance(3, 0)]
        assert await writer.run(grant(consumer, 1)) == Balance(4, 0)
    finally:
        await asyncio.to_thread(writer.stop)
    assert_books_are_sound(look)


def test_a_caller_that_waits_no_longer_gets_a_retryable_error(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as writer:
        with head_locked(ledger):
            answer = in_thread(lambda: writer.execute(grant(consumer, 5, "once"), timeout_seconds=0.0))
            assert isinstance(answer.exception(30), LedgerUnavailable)
        # What it asked for may still be done; repeating it does it no second time.
        assert writer.execute(grant(consumer, 5, "once")) == Balance(5, 0)
    assert_books_are_sound(look)


def test_stopping_writes_all_that_is_queued(ledger: str, look: Connection) -> None:
    consumer = account()
    writer = make_writer(ledger, batch_max=2)
    writer.start()
    with head_locked(ledger):
        answers = [in_thread(lambda: writer.execute(grant(consumer, 1))) for _ in range(7)]
        until(lambda: writer._queue.qsize() >= 5, "the rest is queued")
        until_sessions_wait(look, 1)
        stopped = in_thread(writer.stop)
        until(lambda: writer._stopping, "the writer is told to stop")
        with pytest.raises(LedgerUnavailable):
            writer.execute(grant(consumer, 1_000))

    stopped.result(30)
    assert sorted(answer.result(30).balance_micro_usd for answer in answers) == [1, 2, 3, 4, 5, 6, 7]
    assert balance_of(look, consumer) == 7
    assert_books_are_sound(look)


class SlowToTake(SimpleQueue[Any]):
    """A queue that holds one caller up between being let in and being queued."""

    def __init__(self) -> None:
        self.let_in, self.may_queue = threading.Event(), threading.Event()

    def qsize(self) -> int:
        if threading.current_thread().name == "late caller":
            self.let_in.set()
            self.may_queue.wait(30)
        return super().qsize()


def ask_late(writer: LedgerWriter, command: Command[Any]) -> list[Any]:
    """Ask from the thread that the queue holds up; the answer is in the list once it came."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(writer.execute(command, timeout_seconds=None))
        except DarkbloomError as error:
            answers.append(error)

    threading.Thread(target=ask, name="late caller", daemon=True).start()
    return answers


def test_a_command_that_comes_in_while_the_writer_stops_is_answered(
    ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, queue = make_writer(ledger), SlowToTake()
    monkeypatch.setattr(writer, "_queue", queue)
    writer.start()
    answers = ask_late(writer, grant(account(), 1))
    assert queue.let_in.wait(30)

    stopped = in_thread(writer.stop)
    within(1, stopped.done)  # a writer that waits for whom it let in does not stop yet
    queue.may_queue.set()

    until(lambda: answers or (stopped.done() and not queue.empty()), "the command is answered or left behind")
    assert answers, "the command was let in, and nobody will ever answer it"


def test_a_writer_stops_though_a_command_came_in_behind_the_end_of_its_queue(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that is busy, and a caller that was let in but is not queued yet
    writer, queue = make_writer(ledger), SlowToTake()
    monkeypatch.setattr(writer, "_queue", queue)
    writer.start()
    with head_locked(ledger):
        in_thread(lambda: writer.execute(grant(account(), 1)))
        until_sessions_wait(look, 1)
        answers = ask_late(writer, grant(account(), 1))
        assert queue.let_in.wait(30)
        # When the writer is told to stop before that caller is queued
        stopped = in_thread(writer.stop)
        within(1, lambda: not queue.empty())  # the same
        queue.may_queue.set()
        until(lambda: answers or queue.qsize() == 2, "the caller is queued or turned away")
    # Then it stops.
    try:
        stopped.result(5)
    finally:
        queue.put(None)  # a writer that waits for ever ends with this test
    until(lambda: answers, "the command is answered")


# --- order in the log ------------------------------------------------------------------------------------------------


def test_recorded_times_never_run_backwards_when_the_clock_does(ledger: str, look: Connection) -> None:
    noon = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
    times = [noon, noon - timedelta(hours=1), noon + timedelta(seconds=1), noon - timedelta(days=400)]
    clock = iter(times)
    consumer = account()
    with running(ledger, clock=lambda: next(clock)) as writer:
        for _ in times:
            writer.execute(grant(consumer, 1))
    with running(ledger, clock=lambda: noon - timedelta(days=1)) as another:
        another.execute(grant(consumer, 1))

    batches = sorted({(event.position + 1) // 2: event.recorded_at for event in log_of(look)}.items())
    assert [recorded_at for _, recorded_at in batches] == [
        noon,
        noon,
        noon + timedelta(seconds=1),
        noon + timedelta(seconds=1),
        noon + timedelta(seconds=1),
    ]
    assert_books_are_sound(look)


def test_positions_have_no_gap_after_refusals_bugs_and_failed_batches(ledger: str, look: Connection) -> None:
    sabotage, consumer = Sabotage(), account()
    with running(ledger, sabotage) as writer:
        for turn in range(6):
            writer.execute(grant(consumer, 10))
            answer_to(writer, admit(consumer, 1_000))
            answer_to(writer, RecordThenRaise(account_id=consumer, error=ValueError()))
            sabotage.next = FAILURES["a wrong statement" if turn % 2 else "a killed session"]
            answer_to(writer, grant(consumer, 10_000))

    assert balance_of(look, consumer) == 60
    assert head_of(look) == 12
    assert_books_are_sound(look)


# --- a log that cannot be read ---------------------------------------------------------------------------------------


def test_an_unreadable_event_of_another_writer_does_not_keep_the_head_locked(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as writer:
        writer.execute(grant(consumer, 1))
        # Given an event that a newer build appended to a wallet that this one has in its cache
        with look.transaction():
            look.execute(
                "INSERT INTO events SELECT 3, %s, 2, 'Wallet.FromTheFuture', recorded_at, '{}' FROM ledger_head",
                (Wallet.id_of(consumer),),
            )
            look.execute("UPDATE ledger_head SET position = 3")
        # When this build's writer meets it
        assert isinstance(answer_to(writer, grant(consumer, 1)), DarkbloomError)
        # Then it may refuse to go on, but it does not stand in the way of others.
        look.execute("SELECT FROM ledger_head FOR UPDATE NOWAIT")


def forge_wallet(look: Connection, account_id: str) -> None:
    """Change the events of a wallet by hand, so that they no longer fit their columns."""
    with past_the_guard(look):
        changed = look.execute(
            "UPDATE events SET state = convert_to(replace(convert_from(state, 'UTF8'), '\"originator_version\":1', "
            "'\"originator_version\":7'), 'UTF8') WHERE originator_id = %s RETURNING position",
            (Wallet.id_of(account_id),),
        ).fetchall()
    assert changed


def test_an_aggregate_that_cannot_be_read_fails_only_the_commands_that_need_it(ledger: str, look: Connection) -> None:
    broken, fine = account("broken"), account("fine")
    with running(ledger, cache_max=0) as writer:
        writer.execute(grant(broken, 10))
        writer.execute(grant(fine, 10))
        forge_wallet(look, broken)
        # When three commands share a batch, because an earlier one waits for the head
        with head_locked(ledger):
            in_thread(lambda: writer.execute(OpenAccount(account_id=fine)))
            until_sessions_wait(look, 1)
            answers = []
            for command in (grant(fine, 1), admit(broken, 1), grant(fine, 1)):
                answers.append(in_thread(lambda command=command: answer_to(writer, command)))  # type: ignore[misc]
                until(lambda: writer._queue.qsize() == len(answers), "the command is queued")

    assert isinstance(answers[1].result(30), InternalError)
    assert [answers[0].result(30), answers[2].result(30)] == [Balance(11, 0), Balance(12, 0)]


def test_an_event_that_cannot_be_read_does_not_keep_a_writer_from_starting(ledger: str, look: Connection) -> None:
    broken, fine = account("broken"), account("fine")
    with running(ledger) as writer:
        writer.execute(grant(broken, 10))
    forge_wallet(look, broken)

    with running(ledger) as writer:
        assert answer_to(writer, grant(fine, 1)) == Balance(1, 0)


# --- a small cache, and anything in any order ------------------------------------------------------------------------


@pytest.mark.parametrize("cache_max", [0, 1, 3])
def test_more_wallets_than_the_cache_holds_are_still_right(ledger: str, look: Connection, cache_max: int) -> None:
    consumers = [account(f"consumer-{at}") for at in range(8)]
    with running(ledger, cache_max=cache_max) as writer:
        for turn in range(3):
            for one in consumers:
                writer.execute(grant(one, 10))
            for at, one in enumerate(consumers):
                settled_request(writer, one, hold=10, cost=turn + 1, provider=consumers[at - 1])
        assert len(writer._cache._aggregates) <= cache_max

    assert_books_are_sound(look)
    assert all(balance_of(look, one) == 30 for one in consumers)  # each earned what it spent


ACCOUNTS = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("grant"), ACCOUNTS, st.integers(0, 300)),
    st.tuples(st.just("admit"), ACCOUNTS, st.integers(1, 200)),
    st.tuples(st.just("dispatch"), st.integers(0, 9), st.integers(-1, 2)),
    st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 250)),
    st.tuples(st.just("release"), st.integers(0, 9), st.integers(0, 1)),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(STEPS, min_size=1, max_size=8), min_size=1, max_size=6), cache_max=st.integers(0, 6))
def test_after_anything_in_any_order_every_table_says_what_the_log_says(
    ledger: str, look: Connection, batches: list[list[tuple[str, int, int]]], cache_max: int
) -> None:
    consumers = [account(f"consumer-{at}") for at in range(3)]
    requests: list[tuple[UUID, str]] = []

    def command_of(step: tuple[str, int, int]) -> Command[Any]:
        what, first, second = step
        if what == "grant":
            return grant(consumers[first], second)
        if what == "admit":
            requests.append((uuid4(), consumers[first]))
            return admit(consumers[first], second, requests[-1][0])
        request_id, owner = requests[first % len(requests)] if requests else (uuid4(), consumers[0])
        if what == "dispatch":
            return dispatch(request_id, provider="" if second < 0 else consumers[second])
        if what == "settle":
            return settle(owner, request_id, second, fee_percent=second % 11)
        return release(owner, request_id)

    async def run_all(writer: LedgerWriter) -> list[Any]:
        answers = []
        for batch in batches:
            commands = [command_of(step) for step in batch]
            answers += await asyncio.gather(*(writer.run(command) for command in commands), return_exceptions=True)
        return answers

    with running(ledger, cache_max=cache_max) as writer:
        answers = asyncio.run(run_all(writer))

    assert not [answer for answer in answers if isinstance(answer, InternalError)]
    assert_books_are_sound(look)


async def test_start_with_makes_one_batch(ledger: str, look: Connection) -> None:
    """What the tests above rely on: commands queued before the start are written in one transaction."""
    writer = make_writer(ledger)

    await start_with(writer, [grant(account(), 1) for _ in range(20)])

    await asyncio.to_thread(writer.stop)
    transactions = look.execute("SELECT count(DISTINCT xmin::text) FROM events").fetchone()
    assert transactions == (1,)
