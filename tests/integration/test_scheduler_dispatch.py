"""Dispatching on the real ledger and the real fleet table: one attempt, one machine, one event, however often asked."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.postgres.pool import open_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import Assigned, DispatchJob, Notice, Refused, Waiting
from domain.errors import LedgerUnavailable
from domain.requests import JobFailure, job_id_of
from domain.routing import Snapshot
from tests.support.ledger_commands import GATEWAY, MODEL, release
from tests.support.ledger_machines import assert_counters_are_true, busy_of, claims, job, machine, waiting
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_tables import assert_books_are_sound, log_of
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]


async def announced(gateway: GatewayFleet, **facts: Any) -> Snapshot:
    one = machine(**facts)
    await gateway.announce(one, routable=True)
    return one


async def dispatched(scene: SchedulerScene, *jobs: DispatchJob) -> list[Notice]:
    """Run each job as its actor does; what their gateway was told."""
    for one in jobs:
        await asyncio.to_thread(scene.scheduler.dispatch, one)
    return scene.mailbox.take()


def dispatches(look: Connection) -> list[tuple[str, int, str]]:
    """Job, attempt and session of every JobDispatched in the log."""
    return [
        (event.payload["job_id"], event.payload["attempt"], event.payload["provider_id"])
        for event in log_of(look)
        if event.name == "JobDispatched"
    ]


# --- a machine is there ----------------------------------------------------------------------------------------------


async def test_a_request_is_assigned_to_a_machine_and_the_log_knows_it(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway, capacity=2)
    wanted = scene.asked()

    notices = await dispatched(scene, wanted)

    job_id = str(job_id_of(wanted.request_id, 1))
    assert notices == [Assigned(request_id=wanted.request_id, attempt=1, job_id=job_id, machine=one)]
    assert dispatches(look) == [(job_id, 1, one.session_id)]
    assert claims(look) == {(wanted.request_id, 1): one.session_id}
    lasts = "SELECT expires_at - now() BETWEEN interval '3600 seconds' AND interval '3690 seconds' FROM claims"
    assert look.execute(lasts).fetchall() == [(True,)]
    assert waiting(look) == []
    assert_counters_are_true(look)
    assert_books_are_sound(look)


@pytest.mark.parametrize(
    ("machines", "capacity", "somebody_waits", "found"),
    [(2, 1, False, Assigned), (1, 2, False, Assigned), (1, 1, False, Refused), (2, 2, True, Refused)],
    ids=["another machine", "another slot", "the last slot", "somebody waits"],
)
async def test_a_hedge_takes_no_slot_that_somebody_else_may_need(
    scene: SchedulerScene,
    gateway: GatewayFleet,
    look: Connection,
    machines: int,
    capacity: int,
    somebody_waits: bool,
    found: type[Notice],
) -> None:
    if somebody_waits:
        await dispatched(scene, scene.asked())
    for _ in range(machines):
        await announced(gateway, capacity=capacity)

    [notice] = await dispatched(scene, scene.asked(attempt=2, hedge=True, may_wait=False))

    assert isinstance(notice, found)
    assert len(claims(look)) == (found is Assigned)


async def test_the_log_is_written_before_the_gateway_is_told(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await announced(gateway)
    known: list[int] = []
    monkeypatch.setattr(scene.mailbox, "deliver", lambda *_: known.append(len(dispatches(look))))

    await dispatched(scene, scene.asked())

    assert known == [1]


@pytest.mark.parametrize("capacity", [2, 1])
async def test_a_message_that_comes_twice_finds_the_slot_of_its_first_run(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection, capacity: int
) -> None:
    one = await announced(gateway, capacity=capacity)
    wanted = scene.asked()

    first, second = await dispatched(scene, wanted), await dispatched(scene, wanted)

    assert isinstance(first[0], Assigned)
    assert second == first
    assert len(dispatches(look)) == 1
    assert claims(look) == {(wanted.request_id, 1): one.session_id}
    assert waiting(look) == []
    assert_counters_are_true(look)


async def test_a_message_that_parked_while_its_other_run_claimed_does_not_stay_in_the_queue(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    """It would take the wakes of those who really wait."""
    await announced(gateway, capacity=1)
    wanted = scene.asked()
    [first] = await dispatched(scene, wanted)
    assert await asyncio.to_thread(scene.fleet.park, wanted, seconds=600, depth_max=10)

    assert await dispatched(scene, wanted) == [first]

    assert waiting(look) == []


async def test_a_message_that_comes_twice_does_not_move_to_another_machine(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    await announced(gateway, capacity=2)
    wanted = scene.asked()
    [first] = await dispatched(scene, wanted)
    for _ in range(3):
        await announced(gateway, capacity=5, decode_tps=10_000.0, prefill_tps=40_000.0)

    assert await dispatched(scene, wanted, wanted) == [first, first]

    assert len(dispatches(look)) == len(claims(look)) == 1
    assert_counters_are_true(look)


async def test_a_message_that_comes_many_times_at_once_has_one_slot(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    for _ in range(3):
        await announced(gateway, capacity=4)
    wanted = scene.asked()

    def run_all() -> None:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(scene.scheduler.dispatch, [wanted] * 6))

    await asyncio.to_thread(run_all)

    notices = scene.mailbox.take()
    assert {type(notice) for notice in notices} == {Assigned}
    assert len({notice.machine.session_id for notice in notices if isinstance(notice, Assigned)}) == 1
    assert len(dispatches(look)) == len(claims(look)) == 1
    assert_counters_are_true(look)


async def test_a_ledger_that_fails_once_does_not_make_a_request_wait_for_its_own_slot(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run took the only slot and could not record it; the broker runs the message again."""
    one = await announced(gateway, capacity=1)
    wanted = scene.asked()
    with monkeypatch.context() as broken:
        broken.setattr(scene.writer, "execute", _unavailable)
        with pytest.raises(LedgerUnavailable):
            await dispatched(scene, wanted)

    [notice] = await dispatched(scene, wanted)

    assert isinstance(notice, Assigned)
    assert claims(look) == {(wanted.request_id, 1): one.session_id}
    assert len(dispatches(look)) == 1
    assert_counters_are_true(look)


def _unavailable(*_: object, **__: object) -> None:
    raise LedgerUnavailable


async def test_many_requests_at_once_fill_every_slot_once_and_the_rest_waits(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    machines = [await announced(gateway, capacity=2) for _ in range(3)]
    jobs = [scene.asked() for _ in range(10)]

    def run_all() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(scene.scheduler.dispatch, jobs))

    await asyncio.to_thread(run_all)

    kinds = [type(notice) for notice in scene.mailbox.take()]
    assert (kinds.count(Assigned), kinds.count(Waiting)) == (6, 4)
    assert [busy_of(look, one.session_id) for one in machines] == [2, 2, 2]
    assert len(waiting(look)) == 4
    assert_counters_are_true(look)
    assert_books_are_sound(look)


async def test_a_machine_that_filled_up_since_it_was_looked_at_is_passed_over(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = {(await announced(gateway, capacity=1)).session_id for _ in range(2)}
    claim, faster = scene.fleet.claim, scene.asked()

    def somebody_is_faster(wanted: DispatchJob, session_id: str, *, seconds: float, alone: bool) -> bool:
        if not claims(look):
            assert claim(faster, session_id, seconds=seconds)
        return claim(wanted, session_id, seconds=seconds, alone=alone)

    monkeypatch.setattr(scene.fleet, "claim", somebody_is_faster)
    wanted = scene.asked(may_wait=False)

    [notice] = await dispatched(scene, wanted)

    assert isinstance(notice, Assigned)
    assert set(claims(look)) == {(faster.request_id, 1), (wanted.request_id, 1)}
    assert set(claims(look).values()) == machines
    assert_counters_are_true(look)


async def test_excluded_machines_are_not_chosen(scene: SchedulerScene, gateway: GatewayFleet, look: Connection) -> None:
    failed = await announced(gateway, capacity=5, decode_tps=10_000.0, prefill_tps=40_000.0)
    other = await announced(gateway, capacity=5)
    wanted = scene.asked(excluded=(failed.session_id,))

    [notice] = await dispatched(scene, wanted)

    assert isinstance(notice, Assigned)
    assert notice.machine == other
    assert busy_of(look, failed.session_id) == 0


async def test_machines_of_a_gateway_out_of_reach_are_passed_over_and_only_for_its_time(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    only = await announced(gateway, capacity=5)
    out_of_reach = {only.gateway_id: time.time() + 60.0}

    [notice] = await dispatched(scene, scene.asked(attempt=2, out_of_reach=out_of_reach))
    assert isinstance(notice, Waiting)

    [notice] = await dispatched(scene, scene.asked(out_of_reach={only.gateway_id: time.time() - 1.0}))
    assert isinstance(notice, Assigned)


async def test_only_machines_that_pass_every_gate_are_chosen(scene: SchedulerScene, gateway: GatewayFleet) -> None:
    for unfit in (
        {"trust_level": "self_signed"},
        {"untrusted": True},
        {"draining": True},
        {"runtime_verified": False},
        {"provider_key": ""},
        {"private": False},
        {"challenge_passed_at": time.time() - 361},
        {"thermal_state": "critical"},
        {"total_memory_gb": 1.0},
        {"models": ("other",)},
        {"gateway_id": uuid4()},
    ):
        await announced(gateway, capacity=5, **unfit)

    [notice] = await dispatched(scene, scene.asked(size_gb=2.0))

    assert isinstance(notice, Waiting)


async def test_failures_before_an_attempt_are_recorded_with_it(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    first_machine = await announced(gateway)
    first = scene.asked()
    await dispatched(scene, first)
    failure = JobFailure(str(job_id_of(first.request_id, 1)), "timeout", 504)
    await gateway.release(first.request_id, 1)
    await announced(gateway)

    second = job(first.request_id, attempt=2, excluded=(first_machine.session_id,), failures=(failure,))
    await dispatched(scene, second, second)

    names = [event.name for event in log_of(look)][-3:]
    assert names == ["JobDispatched", "JobFailed", "JobDispatched"]
    assert [attempt for _, attempt, _ in dispatches(look)] == [1, 2]


# --- no machine, or none with a slot ---------------------------------------------------------------------------------


async def test_without_any_machine_a_request_waits_and_its_gateway_knows_that_there_is_none(
    scene: SchedulerScene, look: Connection
) -> None:
    wanted = scene.asked()

    notices = await dispatched(scene, wanted)

    assert notices == [Waiting(request_id=wanted.request_id, attempt=1, machines=0)]
    assert waiting(look) == [wanted.request_id]
    assert dispatches(look) == []


async def test_an_attempt_that_may_not_wait_is_refused(scene: SchedulerScene, look: Connection) -> None:
    wanted = scene.asked(attempt=2, may_wait=False)

    notices = await dispatched(scene, wanted)

    assert notices == [Refused(request_id=wanted.request_id, attempt=2, reason="no_machine")]
    assert waiting(look) == []


async def test_at_a_full_machine_a_request_waits_and_its_gateway_knows_that_there_is_one(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    await announced(gateway, capacity=1)
    first, second = scene.asked(), scene.asked()

    _, notice = await dispatched(scene, first, second)

    assert notice == Waiting(request_id=second.request_id, attempt=1, machines=1)
    assert waiting(look) == [second.request_id]
    assert list(claims(look)) == [(first.request_id, 1)]


async def test_machines_of_another_gateway_are_none_to_wait_for(scene: SchedulerScene, gateway: GatewayFleet) -> None:
    """A request goes to a machine of its own gateway only, so its gateway must not be told to wait for others."""
    await announced(gateway, gateway_id=uuid4())
    wanted = scene.asked()

    assert await dispatched(scene, wanted) == [Waiting(request_id=wanted.request_id, attempt=1, machines=0)]


async def test_a_parked_request_is_dispatched_when_a_slot_comes_free(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway, capacity=1)
    first, second, third = scene.asked(), scene.asked(), scene.asked()
    await dispatched(scene, first, second, third)

    woken = await gateway.release(first.request_id, 1)
    assert woken == [second]
    [notice] = await dispatched(scene, *woken)

    assert isinstance(notice, Assigned)
    assert notice.request_id == second.request_id
    assert claims(look) == {(second.request_id, 1): one.session_id}
    assert waiting(look) == [third.request_id]
    # And the next one after it.
    [last] = await dispatched(scene, *await gateway.release(second.request_id, 1))
    assert isinstance(last, Assigned)
    assert waiting(look) == []
    assert_counters_are_true(look)


async def test_a_parked_request_is_dispatched_when_a_machine_appears(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    wanted = scene.asked()
    await dispatched(scene, wanted)
    one = machine()

    [notice] = await dispatched(scene, *await gateway.announce(one, routable=True))

    assert isinstance(notice, Assigned)
    assert notice.machine == one
    assert waiting(look) == []


async def test_a_slot_that_came_free_between_looking_and_parking_is_taken_at_once(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wake found nobody waiting yet, so without a second look the request would wait for nothing."""
    await announced(gateway, capacity=1)
    first, second = scene.asked(), scene.asked()
    await dispatched(scene, first)
    park = scene.fleet.park

    def freed_meanwhile(*args: Any, **options: Any) -> bool:
        scene.fleet.release(first.request_id, 1)
        assert scene.fleet.wake([MODEL], 1) == []
        return park(*args, **options)

    monkeypatch.setattr(scene.fleet, "park", freed_meanwhile)

    [notice] = await dispatched(scene, second)

    assert isinstance(notice, Assigned)
    assert notice.request_id == second.request_id
    assert waiting(look) == []
    assert_counters_are_true(look)


async def test_one_request_more_than_may_wait_is_refused(ledger: str, writer: LedgerWriter, look: Connection) -> None:
    with open_pool(ledger, size_max=2) as pool:
        scene = SchedulerScene(writer, pool, queue_depth_max=2)
        jobs = [scene.asked() for _ in range(3)]

        notices = await dispatched(scene, *jobs)

    assert [type(notice) for notice in notices] == [Waiting, Waiting, Refused]
    assert notices[2] == Refused(request_id=jobs[2].request_id, attempt=1, reason="queue_full", position=3)
    assert waiting(look) == [one.request_id for one in jobs[:2]]


async def test_a_waiting_request_that_is_woken_in_vain_is_not_refused(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    """Somebody else was faster; the request had its place in the queue and keeps it."""
    with open_pool(ledger, size_max=2) as pool:
        scene = SchedulerScene(writer, pool, queue_depth_max=2)
        jobs = [scene.asked() for _ in range(2)]
        await dispatched(scene, *jobs)
        [woken] = await asyncio.to_thread(scene.fleet.wake, [MODEL], 1)

        [notice] = await dispatched(scene, woken)

    assert isinstance(notice, Waiting)
    assert waiting(look) == [one.request_id for one in jobs]


async def test_a_job_past_its_deadline_is_dropped_in_silence(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    await announced(gateway)

    assert await dispatched(scene, scene.asked(deadline=time.time() - 1)) == []

    assert (claims(look), waiting(look)) == ({}, [])


# --- the request is over, or its gateway is gone ---------------------------------------------------------------------


async def test_a_request_that_has_ended_is_not_dispatched_and_its_slot_comes_back(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway)
    wanted = scene.asked()
    scene.writer.execute(release(scene.consumer, wanted.request_id, "cancelled"))

    notices = await dispatched(scene, wanted)

    assert notices == []
    assert dispatches(look) == []
    assert (claims(look), busy_of(look, one.session_id), waiting(look)) == ({}, 0, [])


async def test_a_request_that_nobody_admitted_is_not_dispatched_and_its_slot_comes_back(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway)

    notices = await dispatched(scene, job())

    assert notices == []
    assert (claims(look), busy_of(look, one.session_id), waiting(look)) == ({}, 0, [])


async def test_a_slot_for_a_gateway_that_cannot_be_reached_comes_back(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway)
    scene.mailbox.gone.add(GATEWAY)

    notices = await dispatched(scene, scene.asked())

    assert notices == []
    assert (claims(look), busy_of(look, one.session_id), waiting(look)) == ({}, 0, [])
    assert_books_are_sound(look)


async def test_an_attempt_that_runs_elsewhere_is_not_dispatched_twice_after_the_table_was_lost(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    first = await announced(gateway)
    wanted = scene.asked()
    await dispatched(scene, wanted)
    look.execute("TRUNCATE fleet, claims")
    other = await announced(gateway)

    notices = await dispatched(scene, wanted)

    assert notices == []
    assert [session for _, _, session in dispatches(look)] == [first.session_id]
    assert busy_of(look, other.session_id) == 0
    assert claims(look) == {}


async def test_what_the_ledger_records_of_an_attempt_is_its_machine_and_its_quote(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway, account_id="acct-owner", provider_key="sealing-key")
    wanted = scene.asked()

    await dispatched(scene, wanted)

    said = log_of(look)[-1].payload
    assert UUID(said["job_id"]) == job_id_of(wanted.request_id, 1)
    assert (said["provider_id"], said["machine_id"]) == (one.session_id, one.machine_id)
    assert (said["provider_key"], said["provider_account_id"]) == ("sealing-key", "acct-owner")
    assert said["quote"] == log_of(look)[-2].payload["quote"]
    assert said["actor"] == {"kind": "system", "id": "scheduler"}
    assert said["correlation_id"] == str(wanted.request_id)


# --- work that waits for idle machines -------------------------------------------------------------------------------


async def test_background_work_gets_a_machine_that_does_nothing_else(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = await announced(gateway, capacity=4)
    first, second = scene.asked(background=True, may_wait=False), scene.asked(background=True, may_wait=False)

    [assigned, refused] = await dispatched(scene, first, second)

    assert isinstance(assigned, Assigned)
    assert isinstance(refused, Refused)
    assert busy_of(look, one.session_id) == 1
    [interactive] = await dispatched(scene, scene.asked())
    assert isinstance(interactive, Assigned)  # the other slots are everybody's
    assert await dispatched(scene, first) == [assigned]  # and a message that comes twice finds its machine


async def test_background_work_never_passes_a_request_that_waits(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    waits = scene.asked()
    [notice] = await dispatched(scene, waits)
    assert isinstance(notice, Waiting)
    await announced(gateway, capacity=1)

    [refused] = await dispatched(scene, scene.asked(background=True, may_wait=False))

    assert isinstance(refused, Refused)
    assert waiting(look) == [waits.request_id]
    [assigned] = await dispatched(scene, waits)
    assert isinstance(assigned, Assigned)


async def test_a_gateway_knows_whether_a_machine_is_idle(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    assert not await gateway.is_idle(MODEL)
    one = await announced(gateway, capacity=4)
    assert await gateway.is_idle(MODEL)
    assert not await gateway.is_idle("another")
    working = scene.asked()
    await dispatched(scene, working)
    assert not await gateway.is_idle(MODEL)
    await asyncio.to_thread(scene.fleet.release, working.request_id, 1)
    assert busy_of(look, one.session_id) == 0
    assert await gateway.is_idle(MODEL)
    parked = scene.asked()
    assert await asyncio.to_thread(scene.fleet.park, parked, seconds=600, depth_max=10)
    assert not await gateway.is_idle(MODEL)
