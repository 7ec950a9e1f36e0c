"""A coordinator that is stopped in order: the money of every finished answer is moved before it ends."""

from __future__ import annotations

import threading

import pytest

from adapters.postgres.pool import open_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler import actors, brokers
from adapters.scheduler.worker import SchedulerWorker
from domain.dispatch import SettleJob
from domain.requests import job_id_of
from tests.support.ledger_commands import dispatch
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_tables import assert_books_are_sound, log_of, open_requests
from tests.support.ledger_waiting import Connection, in_thread

pytest_plugins = ["tests.support.ledger_fixtures"]


def test_completions_that_are_only_queued_pay_their_machines_before_the_process_ends(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given completions that could not be recorded at once, behind a worker that is busy
    monkeypatch.setattr("dramatiq.broker.global_broker", None)
    broker, may_work = brokers.make_broker(""), threading.Event()
    with open_pool(ledger, size_max=2) as pool:
        scene = SchedulerScene(writer, pool)
        monkeypatch.setattr(scene.scheduler, "sweep", lambda: may_work.wait(30))
        actors.register(broker, scene.scheduler)
        process = SchedulerWorker(broker, threads=1, sweep_seconds=3_600)
        process.start()
        for delay_ms in (0, 0, 3_600_000):
            request_id = scene.admitted(amount=100)
            writer.execute(dispatch(request_id, provider="acct-provider"))
            completion = SettleJob(
                request_id=request_id,
                account_id=scene.consumer,
                job_id=str(job_id_of(request_id, 1)),
                claimed_prompt_tokens=0,
                claimed_completion_tokens=60,
                completion_bound=100,
            )
            broker.enqueue(actors.message_of(completion), delay=delay_ms)

        # When it is told to stop
        stopping = in_thread(process.stop)
        may_work.set()
        stopping.result(30)

    assert [event.name for event in log_of(look)].count("RequestSettled") == 3
    assert [event.name for event in log_of(look)].count("EarningCredited") == 3
    assert open_requests(look) == {}
    assert_books_are_sound(look)
