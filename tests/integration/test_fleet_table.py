"""The fleet table: slots are claimed once and given back once, whoever asks and however often."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from adapters.postgres.pool import make_async_pool, open_pool
from adapters.scheduler.fleet import AttemptHasSlot, SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import DispatchJob
from domain.errors import ServiceUnavailable
from domain.routing import Demand, Load, Policy
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import (
    assert_counters_are_true,
    busy_of,
    claims,
    job,
    lease,
    machine,
    open_requests_of,
    waiting,
)
from tests.support.ledger_waiting import (
    Connection,
    in_thread,
    sessions_waiting_for_a_lock,
    until_in_loop,
    until_sessions_wait,
)

pytest_plugins = ["tests.support.ledger_fixtures"]

THREADS = 16


@pytest.fixture
def fleet(ledger: str) -> Generator[SchedulerFleet, None, None]:
    with open_pool(ledger, size_max=THREADS) as pool:
        yield SchedulerFleet(pool)


def ids(jobs: list[DispatchJob]) -> list[UUID]:
    return [one.request_id for one in jobs]


def park(fleet: SchedulerFleet, look: Connection, *jobs: DispatchJob, depth_max: int = 100) -> list[bool]:
    open_requests_of(look, *jobs)
    return [fleet.park(one, seconds=600, depth_max=depth_max) is not None for one in jobs]


def age_queue(look: Connection, seconds: float) -> None:
    """Let time pass for everything that was woken."""
    look.execute("UPDATE waiters SET woken_at = woken_at - make_interval(secs => %s)", (seconds,))


# --- slots -----------------------------------------------------------------------------------------------------------


async def test_sixteen_threads_never_claim_more_slots_than_there_are(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    machines = [machine(capacity=capacity) for capacity in (1, 2, 5)]
    for one in machines:
        await gateway.announce(one, routable=True)
    sessions = [one.session_id for one in machines]

    def claim_any(request_id: UUID) -> list[str]:
        """Ask every machine in some order until one has a slot."""
        for session_id in random.Random(request_id.int).sample(sessions, len(sessions)):
            if fleet.claim(job(request_id), session_id, seconds=600):
                return [session_id]
        return []

    with ThreadPoolExecutor(THREADS) as pool:
        won = [one for found in pool.map(claim_any, [uuid4() for _ in range(64)]) for one in found]

    assert sorted(won.count(one) for one in sessions) == [1, 2, 5]
    assert len(claims(look)) == 8
    assert_counters_are_true(look)


async def test_one_attempt_asked_for_by_sixteen_threads_is_claimed_once(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    machines = [machine(capacity=20), machine(capacity=20)]
    for one in machines:
        await gateway.announce(one, routable=True)
    wanted = job()

    def claim(number: int) -> bool:
        try:
            return fleet.claim(wanted, machines[number % 2].session_id, seconds=600)
        except AttemptHasSlot:
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        won = list(pool.map(claim, range(THREADS)))

    assert won.count(True) == 1
    assert list(claims(look)) == [(wanted.request_id, 1)]
    assert_counters_are_true(look)


async def test_threads_that_claim_and_release_all_at_once_leave_every_counter_true(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    machines = [machine(capacity=2), machine(capacity=3)]
    for one in machines:
        await gateway.announce(one, routable=True)

    def live(number: int) -> None:
        chance = random.Random(number)
        for _ in range(12):
            one = job()
            if fleet.claim(one, chance.choice(machines).session_id, seconds=600):
                fleet.release(one.request_id, 1)
                fleet.release(one.request_id, 1)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(live, range(THREADS)))

    assert claims(look) == {}
    assert [busy_of(look, one.session_id) for one in machines] == [0, 0]


async def test_a_claim_on_an_attempt_that_has_a_slot_changes_nothing(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    first, other = machine(capacity=3), machine(capacity=3)
    for one in (first, other):
        await gateway.announce(one, routable=True)
    wanted = job()
    assert fleet.claim(wanted, first.session_id, seconds=600)

    for session in (first, other):
        with pytest.raises(AttemptHasSlot):
            fleet.claim(wanted, session.session_id, seconds=600)

    assert claims(look) == {(wanted.request_id, 1): first.session_id}
    assert fleet.claimed_session(wanted.request_id, 1) == first.session_id
    assert (busy_of(look, first.session_id), busy_of(look, other.session_id)) == (1, 0)
    # Another attempt of the same request is another claim.
    assert fleet.claim(job(wanted.request_id, attempt=2), other.session_id, seconds=600)
    assert_counters_are_true(look)


async def test_a_slot_that_is_given_back_twice_is_given_back_once(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    kept, returned = job(), job()
    for wanted in (kept, returned):
        assert fleet.claim(wanted, one.session_id, seconds=600)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fleet.release(returned.request_id, 1), range(8)))
    await gateway.release(returned.request_id, 1)
    fleet.release(uuid4(), 1)

    assert busy_of(look, one.session_id) == 1
    assert_counters_are_true(look)


async def test_slots_that_are_given_back_together_each_count_once_and_wake_as_many(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    machines = [machine(capacity=4, models=(MODEL, "second")) for _ in range(3)]
    for one in machines:
        await gateway.announce(one, routable=True)
    running = [job(model=model) for _ in range(4) for model in (MODEL, "second")]
    for number, wanted in enumerate(running):
        assert fleet.claim(wanted, machines[number % 3].session_id, seconds=600)
    waiters = [job() for _ in range(5)]
    park(fleet, look, *waiters)
    *ended, kept = running

    given_back = [gateway.release(one.request_id, 1) for one in (*ended, ended[0])]
    woken = [one for some in await asyncio.gather(*given_back) for one in some]

    assert ids(woken) == ids(waiters)
    assert set(claims(look)) == {(kept.request_id, 1)}
    assert sum(busy_of(look, one.session_id) for one in machines) == 1
    assert_counters_are_true(look)


async def test_slots_whose_giver_is_cancelled_go_back_with_the_next(
    ledger: str, fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    first, second = job(), job()
    for wanted in (first, second):
        assert fleet.claim(wanted, one.session_id, seconds=600)
    with psycopg.connect(ledger) as holder:
        holder.execute("SELECT FROM fleet FOR UPDATE")
        giving = asyncio.create_task(gateway.release(first.request_id, 1))
        await asyncio.to_thread(until_sessions_wait, look, 1)
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)
        holder.rollback()

    await gateway.release(second.request_id, 1)

    assert claims(look) == {}
    assert_counters_are_true(look)


async def test_a_claim_and_a_release_of_one_attempt_at_the_same_time_both_succeed(
    ledger: str, fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    """A message that comes twice claims an attempt just as its gateway gives that attempt's slot back."""
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    wanted = job()
    assert fleet.claim(wanted, one.session_id, seconds=600)
    with psycopg.connect(ledger) as holder:
        holder.execute("SELECT FROM fleet FOR UPDATE")
        claim = in_thread(lambda: fleet.claim(wanted, one.session_id, seconds=600))
        until_sessions_wait(look, 1)
        release = in_thread(lambda: fleet.release(wanted.request_id, 1))
        until_sessions_wait(look, 2)
        holder.rollback()

    assert release.exception(30) is None
    assert isinstance(claim.exception(30), AttemptHasSlot | None)
    assert_counters_are_true(look)


async def test_a_machine_that_may_not_be_routed_to_gives_no_slot(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=2)
    await gateway.announce(one, routable=False)

    assert fleet.claim(job(), one.session_id, seconds=600) is False
    assert fleet.claim(job(), str(uuid4()), seconds=600) is False
    assert fleet.machines_for(MODEL, GATEWAY) == []
    assert claims(look) == {}


# --- announcements ---------------------------------------------------------------------------------------------------


async def test_a_machine_announced_again_keeps_its_claims_and_takes_its_new_facts(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    assert fleet.claim(job(), one.session_id, seconds=600)

    hotter = machine(capacity=1, session_id=one.session_id, thermal_state="serious", models=(MODEL, "other"))
    await gateway.announce(hotter, routable=True)

    assert busy_of(look, one.session_id) == 1
    [candidate] = fleet.machines_for("other", GATEWAY)
    assert candidate.snapshot == hotter
    assert candidate.load == Load(requests_all=1, requests_model=0, output_tokens_model=0)
    assert fleet.claim(job(), one.session_id, seconds=600) is False  # the capacity is one now
    assert_counters_are_true(look)


async def test_candidates_are_the_gateway_s_machines_with_what_is_in_flight_on_each(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    mine, elsewhere = machine(capacity=5, models=(MODEL, "other")), machine(gateway_id=uuid4())
    for one in (mine, elsewhere, machine(models=("other",))):
        await gateway.announce(one, routable=True)
    fleet.claim(job(output_tokens=30), mine.session_id, seconds=600)
    fleet.claim(job(output_tokens=12), mine.session_id, seconds=600)
    fleet.claim(job(model="other", output_tokens=7), mine.session_id, seconds=600)

    [candidate] = fleet.machines_for(MODEL, GATEWAY)

    assert candidate.snapshot == mine
    assert candidate.load == Load(requests_all=3, requests_model=2, output_tokens_model=42)


async def test_what_comes_free_wakes_and_offers_to_the_consumers_of_every_gateway_once_they_relay(
    ledger: str, fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    elsewhere = uuid4()
    waiter = job(reply_to=elsewhere)
    open_requests_of(look, waiter)
    fleet.park(waiter, seconds=600, depth_max=10)
    assert await gateway.announce(machine(), routable=True) == []
    assert await gateway.offers() != []
    async with make_async_pool(ledger, size_max=1) as pool:
        other = GatewayFleet(pool, lambda: elsewhere)
        assert await other.offers() == []
        relaying = GatewayFleet(pool, lambda: elsewhere, relayed=True)
        assert [one.gateway_id for one in await relaying.offers()] == [str(GATEWAY)]

        woken = await GatewayFleet(pool, lambda: GATEWAY, relayed=True).announce(machine(), routable=True)

    assert woken == [waiter]


async def test_a_machine_that_moved_to_another_gateway_id_is_found_there(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    """A gateway that lost its lease goes on under a new id and announces its machines again."""
    before, after = machine(), uuid4()
    await gateway.announce(before, routable=True)

    await gateway.announce(machine(session_id=before.session_id, gateway_id=after), routable=True)

    assert [one.snapshot.session_id for one in fleet.machines_for(MODEL, after)] == [before.session_id]
    assert fleet.machines_for(MODEL, GATEWAY) == []


async def test_a_lost_table_is_made_good_by_announcing_again(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    running_job = job()
    assert fleet.claim(running_job, one.session_id, seconds=600)

    look.execute("TRUNCATE fleet, claims")
    fleet.release(running_job.request_id, 1)
    assert fleet.machines_for(MODEL, GATEWAY) == []
    await gateway.announce(one, routable=True)

    assert [fleet.claim(job(), one.session_id, seconds=600) for _ in range(3)] == [True, True, False]
    assert_counters_are_true(look)


async def test_a_machine_whose_row_alone_was_lost_counts_its_claims_again(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    running_job = job()
    assert fleet.claim(running_job, one.session_id, seconds=600)

    look.execute("TRUNCATE fleet")
    await gateway.announce(one, routable=True)

    assert busy_of(look, one.session_id) == 1
    fleet.release(running_job.request_id, 1)
    assert busy_of(look, one.session_id) == 0


async def test_a_withdrawn_machine_takes_its_claims_with_it(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    gone, stays = machine(), machine()
    for one in (gone, stays):
        await gateway.announce(one, routable=True)
        assert fleet.claim(job(), one.session_id, seconds=600)

    await gateway.withdraw(gone.session_id)
    await gateway.withdraw(gone.session_id)

    assert list(claims(look).values()) == [stays.session_id]
    assert [one.session_id for one in await gateway.offers(MODEL)] == [stays.session_id]


async def test_offers_are_the_gateway_s_machines_that_may_be_routed_to(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    busy, other, hidden = machine(), machine(models=("other",)), machine()
    for one in (busy, other, machine(gateway_id=uuid4())):
        await gateway.announce(one, routable=True)
    await gateway.announce(hidden, routable=False)
    fleet.claim(job(), busy.session_id, seconds=600)

    assert fleet.supply(Demand(MODEL, 1, 1), Policy(), GATEWAY)[:3] == (1, 1, 1)
    assert fleet.supply(Demand("nothing", 1, 1), Policy(), GATEWAY) == (0, 0, 0, None)
    assert {one.session_id for one in await gateway.offers()} == {busy.session_id, other.session_id}


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_waiters_are_woken_in_the_order_in_which_they_came(fleet: SchedulerFleet, look: Connection) -> None:
    jobs = [job() for _ in range(7)]
    assert park(fleet, look, *jobs) == [True] * 7

    woken = [ids(fleet.wake([MODEL], count)) for count in (1, 3, 2, 5)]

    assert [sorted(one) for one in woken] == [
        ids(jobs[:1]),
        sorted(ids(jobs[1:4])),
        sorted(ids(jobs[4:6])),
        ids(jobs[6:]),
    ]


async def test_several_waiters_woken_at_once_come_back_oldest_first(fleet: SchedulerFleet, look: Connection) -> None:
    jobs = [job() for _ in range(40)]
    park(fleet, look, *jobs)
    # A row that was written again does not lose its place in the queue, wherever it now stands in the table.
    look.execute("UPDATE waiters SET model = model WHERE request_id = ANY(%s)", (ids(jobs[::3]),))

    assert ids(fleet.wake([MODEL], 40)) == ids(jobs)


async def test_a_freed_slot_wakes_the_oldest_waiter_of_the_machine_s_models(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(models=(MODEL, "second"))
    await gateway.announce(one, routable=True)
    running_job = job()
    fleet.claim(running_job, one.session_id, seconds=600)
    other, oldest, younger = job(model="third"), job(model="second"), job()
    park(fleet, look, other, oldest, younger)

    assert ids(await gateway.release(running_job.request_id, 1)) == [oldest.request_id]
    assert await gateway.release(running_job.request_id, 1) == []


async def test_a_machine_that_appears_wakes_as_many_as_it_takes(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    jobs = [job() for _ in range(4)]
    park(fleet, look, *jobs)
    hidden, shown = machine(capacity=3), machine(capacity=3)

    assert await gateway.announce(hidden, routable=False) == []
    assert set(ids(await gateway.announce(shown, routable=True))) == set(ids(jobs[:3]))
    assert ids(await gateway.announce(shown, routable=True)) == ids(jobs[3:])


async def test_a_machine_wakes_no_more_than_it_has_free_slots_for(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=3)
    await gateway.announce(one, routable=True)
    for _ in range(2):
        fleet.claim(job(), one.session_id, seconds=600)
    jobs = [job() for _ in range(3)]
    park(fleet, look, *jobs)

    assert ids(await gateway.announce(one, routable=True)) == [jobs[0].request_id]
    fleet.claim(job(), one.session_id, seconds=600)
    assert await gateway.announce(one, routable=True) == []


async def test_a_slot_freed_on_a_gateway_wakes_a_request_that_can_use_it(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    """A request is served by a machine of its own gateway; one of another gateway cannot take this slot."""
    one, elsewhere = machine(), uuid4()
    await gateway.announce(one, routable=True)
    running_job = job()
    fleet.claim(running_job, one.session_id, seconds=600)
    foreign, local = job(reply_to=elsewhere), job()
    park(fleet, look, foreign, local)

    assert ids(await gateway.release(running_job.request_id, 1)) == [local.request_id]


async def test_a_woken_waiter_that_parks_again_keeps_its_place(fleet: SchedulerFleet, look: Connection) -> None:
    oldest, younger = job(), job()
    park(fleet, look, oldest, younger)
    assert ids(fleet.wake([MODEL], 1)) == [oldest.request_id]

    assert park(fleet, look, oldest) == [True]

    assert waiting(look) == ids([oldest, younger])
    assert ids(fleet.wake([MODEL], 1)) == [oldest.request_id]


async def test_a_queue_takes_no_more_than_its_depth_and_each_model_has_its_own(
    fleet: SchedulerFleet, look: Connection
) -> None:
    accepted = park(fleet, look, *(job() for _ in range(5)), depth_max=3)

    assert accepted == [True, True, True, False, False]
    assert park(fleet, look, job(model="other"), depth_max=3) == [True]
    assert len(waiting(look)) == 4


async def test_a_waiter_woken_in_vain_keeps_its_place_in_a_full_queue(fleet: SchedulerFleet, look: Connection) -> None:
    jobs = [job() for _ in range(3)]
    park(fleet, look, *jobs, depth_max=3)
    assert ids(fleet.wake([MODEL], 1)) == [jobs[0].request_id]

    # The slot that woke it went to somebody else: it was in the queue and is in the queue.
    assert park(fleet, look, jobs[0], depth_max=3) == [True]
    assert waiting(look) == ids(jobs)


async def test_requests_that_park_at_the_same_time_do_not_fill_a_queue_beyond_its_depth(
    ledger: str, fleet: SchedulerFleet, look: Connection
) -> None:
    jobs = [job() for _ in range(6)]
    open_requests_of(look, *jobs)
    with psycopg.connect(ledger) as other, ThreadPoolExecutor(6) as pool:
        # Given that each of them has looked at the queue and stands before its own row
        for one in jobs:
            other.execute(
                "INSERT INTO waiters (request_id, attempt, account_id, model, gateway_id, turn, deadline, message) "
                "VALUES (%s, 1, '', '', %s, 0, now(), '')",
                (one.request_id, GATEWAY),
            )
        accepted = [pool.submit(fleet.park, one, seconds=600, depth_max=2) for one in jobs]
        until_sessions_wait(look, 6)
        other.rollback()

        assert [one.result(30) is not None for one in accepted].count(True) == 2
    assert len(waiting(look)) == 2


async def test_a_request_that_is_not_open_does_not_wait(fleet: SchedulerFleet, look: Connection) -> None:
    """It ended, or was never admitted: nobody would take it out of the queue."""
    assert fleet.park(job(), seconds=600, depth_max=10) is None

    assert waiting(look) == []


async def test_a_waiter_that_leaves_is_not_woken(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    first, second, third = job(), job(), job()
    park(fleet, look, first, second, third)

    fleet.leave_queue(first.request_id)
    await gateway.leave_queue(second.request_id)
    await gateway.leave_queue(second.request_id)

    assert ids(fleet.wake([MODEL], 10)) == [third.request_id]


async def test_a_waiter_past_its_deadline_is_neither_woken_nor_counted(fleet: SchedulerFleet, look: Connection) -> None:
    late, timely = job(), job()
    open_requests_of(look, late, timely)
    assert fleet.park(late, seconds=-1, depth_max=1)

    assert fleet.park(timely, seconds=600, depth_max=1)
    assert ids(fleet.wake([MODEL], 10)) == [timely.request_id]

    look.execute(
        "UPDATE waiters SET deadline = now() - interval '61 seconds' WHERE request_id = %s", (late.request_id,)
    )
    lease(look)
    fleet.sweep()
    assert waiting(look) == [timely.request_id]


async def test_a_woken_job_comes_back_as_it_was_parked(fleet: SchedulerFleet, look: Connection) -> None:
    parked = job(excluded=(str(uuid4()),), attempt=2, output_tokens=99)
    park(fleet, look, parked)

    assert fleet.wake([MODEL], 1) == [parked]


async def test_two_wakes_at_once_wake_two_different_waiters(fleet: SchedulerFleet, look: Connection) -> None:
    jobs = [job() for _ in range(THREADS)]
    park(fleet, look, *jobs)

    with ThreadPoolExecutor(THREADS) as pool:
        woken = [one for found in pool.map(lambda _: fleet.wake([MODEL], 1), range(THREADS)) for one in found]

    assert sorted(ids(woken)) == sorted(ids(jobs))


# --- sweeping --------------------------------------------------------------------------------------------------------


async def test_a_wake_that_got_lost_is_repeated_by_the_sweep(fleet: SchedulerFleet, look: Connection) -> None:
    lease(look)
    first, second = job(), job()
    park(fleet, look, first, second)
    assert ids(fleet.wake([MODEL], 1)) == [first.request_id]  # and the process dies before it sends the message

    assert ids(fleet.sweep()) == [second.request_id]  # the first one's wake is too young to be given up
    age_queue(look, 6)

    assert ids(fleet.sweep()) == [first.request_id, second.request_id]


async def test_the_sweep_frees_slots_whose_claims_outlived_every_deadline(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lease(look)
    one = machine(capacity=3)
    await gateway.announce(one, routable=True)
    expired, alive = [job(), job()], job()
    for wanted in (*expired, alive):
        assert fleet.claim(wanted, one.session_id, seconds=600)
    look.execute(
        "UPDATE claims SET expires_at = now() - interval '1 second' WHERE request_id = ANY(%s)", (ids(expired),)
    )

    fleet.sweep()
    fleet.sweep()

    assert list(claims(look)) == [(alive.request_id, 1)]
    assert busy_of(look, one.session_id) == 1


async def test_the_sweep_frees_slots_of_requests_that_have_ended_but_not_of_those_just_claimed(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lease(look)
    one = machine(capacity=3)
    await gateway.announce(one, routable=True)
    ended, still_open, just_claimed = job(), job(), job()
    open_requests_of(look, still_open)
    for wanted in (ended, still_open, just_claimed):
        assert fleet.claim(wanted, one.session_id, seconds=600)
    look.execute(
        "UPDATE claims SET claimed_at = now() - interval '11 seconds' WHERE request_id = ANY(%s)",
        (ids([ended, still_open]),),
    )

    fleet.sweep()

    assert set(claims(look)) == {(still_open.request_id, 1), (just_claimed.request_id, 1)}
    assert_counters_are_true(look)


async def test_the_sweep_forgets_machines_that_were_not_announced_for_minutes(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lease(look)
    silent, alive = machine(), machine()
    for one in (silent, alive):
        await gateway.announce(one, routable=True)
        look.execute("UPDATE fleet SET updated_at = now() - interval '181 seconds'")
    await gateway.announce(alive, routable=True)

    fleet.sweep()

    assert [one.session_id for one in await gateway.offers()] == [alive.session_id]


async def test_the_sweep_forgets_machines_of_lapsed_and_of_unknown_gateways(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lapsed, unknown = uuid4(), uuid4()
    lease(look)
    lease(look, lapsed, lapsed_seconds=1)
    kept = machine()
    for one in (kept, machine(gateway_id=lapsed), machine(gateway_id=unknown)):
        await gateway.announce(one, routable=True)
        assert fleet.claim(job(), one.session_id, seconds=600)

    fleet.sweep()

    assert look.execute("SELECT session_id::text FROM fleet").fetchall() == [(kept.session_id,)]
    assert list(claims(look).values()) == [kept.session_id]
    assert_counters_are_true(look)


async def test_a_sweep_waits_for_nobody_and_takes_the_rest_the_next_time(
    ledger: str, fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lease(look)
    busy, other = machine(capacity=2), machine(capacity=2)
    for one in (busy, other):
        await gateway.announce(one, routable=True)
        assert fleet.claim(job(), one.session_id, seconds=-1)

    with psycopg.connect(ledger) as holder:
        holder.execute("SELECT FROM fleet WHERE session_id = %s FOR UPDATE", (busy.session_id,))
        in_thread(fleet.sweep).result(30)
        assert list(claims(look).values()) == [busy.session_id]
        holder.rollback()
    fleet.sweep()

    assert claims(look) == {}
    assert_counters_are_true(look)


async def test_a_claim_and_the_end_of_its_machine_at_the_same_time_both_succeed(
    ledger: str, fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    """A message that comes twice claims an attempt just as its machine disconnects."""
    one = machine(capacity=2)
    await gateway.announce(one, routable=True)
    wanted = job()
    assert fleet.claim(wanted, one.session_id, seconds=600)
    with psycopg.connect(ledger) as holder:
        holder.execute("SELECT FROM fleet FOR UPDATE")
        claim = in_thread(lambda: fleet.claim(wanted, one.session_id, seconds=600))
        await asyncio.to_thread(until_sessions_wait, look, 1)
        withdrawal = asyncio.create_task(gateway.withdraw(one.session_id))
        await asyncio.sleep(0)
        await until_in_loop(lambda: sessions_waiting_for_a_lock(look) >= 2, "both wait")
        holder.rollback()

        await withdrawal
    assert isinstance(claim.exception(30), AttemptHasSlot | None)
    assert claims(look) == {}


async def test_sweeps_beside_claims_and_releases_never_make_a_counter_drift(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lease(look)
    one = machine(capacity=4)
    await gateway.announce(one, routable=True)

    def live(number: int) -> None:
        for turn in range(10):
            wanted = job()
            if number == 0:
                fleet.sweep()
            elif fleet.claim(wanted, one.session_id, seconds=-1 if turn % 2 else 600) and turn % 4:
                fleet.release(wanted.request_id, 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    fleet.sweep()

    assert_counters_are_true(look)


async def test_slots_whose_return_failed_go_back_with_the_next_one(
    gateway: GatewayFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, next_one = (uuid4(), 1), (uuid4(), 2)
    given_back: list[Any] = []

    async def unavailable(leaving: Any) -> list[DispatchJob]:
        raise ServiceUnavailable

    async def remembered(leaving: Any) -> list[DispatchJob]:
        given_back.extend(leaving)
        return []

    monkeypatch.setattr(gateway, "_give_back", unavailable)
    with pytest.raises(ServiceUnavailable):
        await gateway.release(*lost)
    monkeypatch.setattr(gateway, "_give_back", remembered)
    await gateway.release(*next_one)

    assert given_back == [lost, next_one]
