"""Several writers on one log: they take turns at its head, and each decides on what the others wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from adapters.postgres import sql
from adapters.postgres import writer as writer_module
from adapters.postgres.writer import LedgerWriter
from domain.errors import InsufficientFunds, LedgerUnavailable
from domain.ledger import OpenAccount
from domain.requests import RequestReleased, RequestSettled
from tests.support.ledger_commands import account, admit, dispatch, grant, release, settle, settled_request
from tests.support.ledger_spender import spend
from tests.support.ledger_tables import assert_books_are_sound, balance_of, log_of, names_of, open_requests
from tests.support.ledger_waiting import Connection, head_locked, in_thread, terminate_sessions, until_sessions_wait
from tests.support.ledger_writers import running
from tests.support.processes import eventually

pytest_plugins = ["tests.support.ledger_fixtures"]

PROJECT = Path(__file__).resolve().parents[2]


def test_two_writers_in_two_threads_admit_exactly_what_the_balance_pays_for(ledger: str, look: Connection) -> None:
    hot = account("hot")
    with running(ledger) as writer:
        writer.execute(grant(hot, 50 * 100 + 99))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: spend(ledger, hot, 100, 64), range(2))

    assert one + other == Counter(admitted=50, InsufficientFunds=78)
    assert balance_of(look, hot) == 99
    assert len(open_requests(look)) == 50
    assert_books_are_sound(look)


def test_eight_threads_in_each_of_three_processes_admit_exactly_what_the_balance_pays_for(
    ledger: str, look: Connection
) -> None:
    hot = account("hot")
    with running(ledger) as writer:
        writer.execute(grant(hot, 80 * 100))

    command = [sys.executable, "-m", "tests.support.ledger_spender", ledger, hot, "100", "40"]
    processes = [
        subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outcomes: Counter[str] = Counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            said, _ = process.communicate(timeout=60)
            outcomes += Counter(json.loads(said))
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    assert outcomes == Counter(admitted=80, InsufficientFunds=40)
    assert balance_of(look, hot) == 0
    assert_books_are_sound(look)


def test_a_writer_that_vanished_in_the_middle_of_its_transaction_does_not_hold_the_head_for_ever(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said neither that it is done nor that it waits, so the server goes on waiting for it."""
    monkeypatch.setattr(writer_module, "SILENT_SECONDS_MAX", 0.5)
    consumer = account()
    with (
        running(ledger) as writer,
        psycopg.connect(ledger, autocommit=True, application_name=writer_module.APPLICATION) as vanished,
    ):
        vanished.pgconn.enter_pipeline_mode()
        for statement in (b"BEGIN", sql.LOCK_HEAD.encode()):
            vanished.pgconn.send_query_params(statement, None)
        vanished.pgconn.send_flush_request()
        vanished.pgconn.flush()
        eventually(
            lambda: (
                look.execute(
                    "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event = 'ClientRead'",
                    (vanished.info.backend_pid,),
                ).fetchone()
                is not None
            ),
            "the head to be held",
        )

        with pytest.raises(LedgerUnavailable):
            writer.execute(grant(consumer, 100))
        writer.execute(grant(consumer, 100))
        vanished.close()

    assert balance_of(look, consumer) == 100
    assert_books_are_sound(look)


def test_each_writer_decides_on_what_the_other_just_wrote(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as one, running(ledger) as other:
        one.execute(grant(consumer, 100))
        with pytest.raises(InsufficientFunds):
            other.execute(admit(consumer, 101))
        request_id = uuid4()

        other.execute(admit(consumer, 100, request_id))
        with pytest.raises(InsufficientFunds):
            one.execute(admit(consumer, 1))

        one.execute(release(consumer, request_id))
        assert other.execute(admit(consumer, 100)).reserved == 100
    assert_books_are_sound(look)


def test_a_request_is_admitted_dispatched_and_settled_by_three_writers(ledger: str, look: Connection) -> None:
    consumer, provider, request_id = account("consumer"), account("provider"), uuid4()
    with running(ledger) as first, running(ledger) as second, running(ledger) as third:
        first.execute(grant(consumer, 100))
        second.execute(admit(consumer, 100, request_id))
        assert third.execute(dispatch(request_id, provider=provider)) is True
        settled = first.execute(settle(consumer, request_id, 30))
        assert second.execute(release(consumer, request_id)) == settled
        assert isinstance(settled, RequestSettled)
        # The provider spends at once what it has just earned, wherever it asks.
        assert third.execute(admit(provider, 30)).reserved == 30
    assert_books_are_sound(look)


def test_of_a_settlement_and_a_release_at_the_same_time_one_wins_for_both(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as one, running(ledger) as other:
        one.execute(grant(consumer, 1_000))
        for turn in range(10):
            request_id = uuid4()
            one.execute(admit(consumer, 100, request_id))
            one.execute(dispatch(request_id))
            # Both commands are decided behind the same lock, in the order in which they come to it.
            with head_locked(ledger):
                ends = []
                for writer, command in sorted(
                    [(one, settle(consumer, request_id, 10)), (other, release(consumer, request_id))],
                    key=lambda pair: (pair[0] is one) == bool(turn % 2),
                ):
                    ends.append(in_thread(lambda writer=writer, command=command: writer.execute(command)))  # type: ignore[misc]
                    until_sessions_wait(look, len(ends))
            first, second = (end.result(30) for end in ends)
            assert first == second
            assert isinstance(first, RequestReleased if turn % 2 else RequestSettled)
            ends_recorded = {"RequestSettled", "RequestReleased"} & set(names_of(look, request_id))
            assert len(ends_recorded) == 1
    assert balance_of(look, consumer) == 1_000 - 5 * 10
    assert_books_are_sound(look)


def write(writer: LedgerWriter, consumer: str, request_id: UUID, events: int) -> None:
    """Append so many events; from two on, the last two end the request."""
    if events % 2:
        writer.execute(OpenAccount(account_id=account("somebody")))
    for _ in range(events // 2 - 1):
        writer.execute(grant(consumer, 1))
    if events >= 2:
        writer.execute(release(consumer, request_id))


@pytest.mark.parametrize("events_behind", [1, 2, 3, 4, 5, 6, 11])
def test_a_writer_that_fell_behind_is_right_about_balance_and_request(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch, events_behind: int
) -> None:
    # Given a writer that reads no more than 4 events of the log's tail, and has a wallet and a request in its cache
    monkeypatch.setattr(writer_module, "TAIL_EVENTS_MAX", 4)
    consumer, request_id = account(), uuid4()
    with running(ledger) as behind, running(ledger) as ahead:
        behind.execute(grant(consumer, 100))
        behind.execute(admit(consumer, 100, request_id))
        behind.execute(dispatch(request_id))
        # When another writer has written more than that, or less
        write(ahead, consumer, request_id, events_behind)
        now = balance_of(look, consumer)
        # Then it decides on the truth all the same,
        ended = isinstance(behind.execute(settle(consumer, request_id, 40)), RequestReleased)
        assert ended == (events_behind >= 2)
        left = now if ended else 60
        with pytest.raises(InsufficientFunds):
            behind.execute(admit(consumer, left + 1))
        assert behind.execute(admit(consumer, left)).reserved == left
        # and so does the other one, which now is behind as well.
        with pytest.raises(InsufficientFunds):
            ahead.execute(admit(consumer, 1))
    assert_books_are_sound(look)


def test_a_writer_that_starts_on_a_long_log_is_right_from_its_first_command(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "TAIL_EVENTS_MAX", 10)
    consumer = account()
    with running(ledger) as writer:
        writer.execute(grant(consumer, 1_000))
        for cost in range(1, 11):
            settled_request(writer, consumer, hold=100, cost=cost)

    with running(ledger) as late:
        with pytest.raises(InsufficientFunds):
            late.execute(admit(consumer, 1_000 - 55 + 1))
        assert late.execute(admit(consumer, 1_000 - 55)).reserved == 945
    assert_books_are_sound(look)


def test_events_that_commit_while_a_writer_loads_what_it_needs_are_not_missed(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as one, running(ledger) as other:
        one.execute(grant(consumer, 100))
        # Given a writer that read the wallet and stands before the head, while another's turn comes first
        with head_locked(ledger):
            first = in_thread(lambda: one.execute(admit(consumer, 100)))
            until_sessions_wait(look, 1)
            second = in_thread(lambda: other.execute(admit(consumer, 100)))
            until_sessions_wait(look, 2)
        # Then it sees what that one wrote in the meantime.
        assert first.result(30).reserved == 100
        assert isinstance(second.exception(30), InsufficientFunds)
    assert_books_are_sound(look)


def test_writers_whose_sessions_are_killed_leave_a_log_without_gaps_or_doubles(ledger: str, look: Connection) -> None:
    consumers = [account(f"consumer-{at}") for at in range(4)]
    with running(ledger, batch_max=3) as one, running(ledger, batch_max=3) as other, ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(writer.execute, grant(consumers[at % 4], 1, f"{at}-{writer_name}"))
            for at in range(40)
            for writer_name, writer in (("one", one), ("other", other))
        ]
        terminate_sessions(look, "query LIKE '%ledger_head%'")
        for job in jobs:
            job.exception(30)
        for at in range(40):  # whoever got an error asks again
            for name in ("one", "other"):
                one.execute(grant(consumers[at % 4], 1, f"{at}-{name}"))

    assert [balance_of(look, consumer) for consumer in consumers] == [20, 20, 20, 20]
    assert len(log_of(look)) == 160
    assert len({UUID(str(event.originator_id)) for event in log_of(look)}) == 84
    assert_books_are_sound(look)
