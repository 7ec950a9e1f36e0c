"""The fleet as an operator sees it: every machine, every queue, and what routing would choose."""

from __future__ import annotations

import time
from collections.abc import Generator
from random import Random
from uuid import uuid4

import pytest

from adapters.postgres.pool import open_pool
from adapters.scheduler.gateway_fleet import GatewayFleet
from adapters.scheduler.survey import Queue, Survey
from domain.routing import Demand, Observation, Policy, Reason
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import connected, job, lease
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

DEMAND = Demand(MODEL, 100, 50)


@pytest.fixture
def survey(ledger: str, look: Connection) -> Generator[Survey, None, None]:
    lease(look)
    with open_pool(ledger, size_max=2) as pool:
        yield Survey(pool, Policy(), Random(1))


async def test_machines_that_are_here_come_before_those_that_left(survey: Survey, gateway: GatewayFleet) -> None:
    gone, here = await connected(gateway, account_id="acct"), await connected(gateway)
    await gateway.withdraw(gone.session_id)

    first, second = survey.machines(10)
    assert (first.machine_id, first.snapshot) == (here.machine_id, here)
    assert (second.machine_id, second.account_id, second.snapshot) == (gone.machine_id, "acct", None)
    assert second.models == (MODEL,)
    assert survey.machines(1) == [first]


async def test_a_machine_whose_health_was_lost_is_still_seen(
    survey: Survey, gateway: GatewayFleet, look: Connection
) -> None:
    one = await connected(gateway)
    look.execute("TRUNCATE machine_health")
    [record] = survey.machines(10)
    assert (record.machine_id, record.snapshot, record.models) == (one.machine_id, one, (MODEL,))


async def test_a_dead_gateway_s_machines_are_not_connected_whatever_the_table_says(
    survey: Survey, gateway: GatewayFleet, look: Connection
) -> None:
    one = await connected(gateway)
    lease(look, lapsed_seconds=1)

    assert [(record.machine_id, record.snapshot) for record in survey.machines(10)] == [(one.machine_id, None)]
    assert survey.assess(DEMAND) == []
    assert survey.choices(DEMAND) == {}


async def test_what_would_be_chosen_is_what_each_gateway_s_scheduler_chooses(
    survey: Survey, gateway: GatewayFleet, look: Connection
) -> None:
    elsewhere = uuid4()
    lease(look, elsewhere)
    fast, slow = await connected(gateway, decode_tps=400.0), await connected(gateway, decode_tps=4.0)
    other = await connected(gateway, gateway_id=elsewhere, decode_tps=40.0)
    for _ in range(3):
        gateway.observe(other.machine_id, Observation("job_failed", time.time()))
    await gateway.flush()

    assert [(one.candidate.snapshot, one.reasons) for one in survey.assess(DEMAND)] == [
        (fast, ()),
        (slow, ()),
        (other, (Reason.PUT_ASIDE,)),
    ]
    chosen = {
        gateway_id: choice.candidate.snapshot if choice else None
        for gateway_id, choice in survey.choices(DEMAND).items()
    }
    assert chosen == {str(GATEWAY): fast, str(elsewhere): other}  # there is nobody else at that one


async def test_queues_are_counted_by_request_and_account(
    survey: Survey, gateway: GatewayFleet, look: Connection
) -> None:
    assert survey.queues() == []
    jobs = [job(account_id="one"), job(account_id="one"), job(account_id="two")]
    look.execute("INSERT INTO model_demand (model, slot_seconds) VALUES (%s, 7.5)", (MODEL,))
    for one in jobs:
        look.execute(
            "INSERT INTO waiters (request_id, attempt, account_id, model, gateway_id, turn, deadline, message, "
            "enqueued_at) VALUES (%s, 1, %s, %s, %s, 1, now() + interval '1 minute', '', now() - interval '20 s')",
            (one.request_id, one.account_id, MODEL, GATEWAY),
        )

    [queue] = survey.queues()
    assert queue._replace(oldest_seconds=0) == Queue(MODEL, 3, 2, 0, 7.5)
    assert 20 <= queue.oldest_seconds < 30
