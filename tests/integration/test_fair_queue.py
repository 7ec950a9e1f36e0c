"""The queue of a model: accounts share what comes free, each in its own order, and a hopeless wait is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Literal
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres.pool import open_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.fleet import SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import DispatchJob, Refused, Waiting
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import claims, job, machine, open_requests_of, waiting
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
def fleet(ledger: str) -> Generator[SchedulerFleet, None, None]:
    with open_pool(ledger, size_max=4) as pool:
        yield SchedulerFleet(pool)


def of(account_id: str, count: int, **changes: object) -> list[DispatchJob]:
    return [job(account_id=account_id, **changes) for _ in range(count)]


def park(fleet: SchedulerFleet, look: Connection, jobs: list[DispatchJob]) -> list[int]:
    """Let jobs wait in this order; their places."""
    open_requests_of(look, *jobs)
    places = [fleet.park(one, seconds=600, depth_max=100) for one in jobs]
    return [place.position for place in places if place is not None]


def served(fleet: SchedulerFleet, session_id: str, count: int) -> list[str]:
    """Whose request is served, as one slot comes free so many times."""
    accounts = []
    for _ in range(count):
        [woken] = fleet.wake([MODEL], 1)
        assert fleet.claim(woken, session_id, seconds=600)
        accounts.append(woken.account_id)
        fleet.release(woken.request_id, woken.attempt)
    return accounts


async def test_an_account_that_floods_the_queue_does_not_keep_others_waiting(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=1)
    await gateway.announce(one, routable=True)
    park(fleet, look, [*of("greedy", 8), *of("modest", 2)])

    assert served(fleet, one.session_id, 10) == ["greedy", "modest", "greedy", "modest", *["greedy"] * 6]


async def test_what_an_account_has_in_flight_counts_as_served(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=4)
    await gateway.announce(one, routable=True)
    for running in of("greedy", 3):
        assert fleet.claim(running, one.session_id, seconds=600)
    park(fleet, look, [*of("greedy", 1), *of("modest", 1)])

    assert served(fleet, one.session_id, 2) == ["modest", "greedy"]


async def test_within_an_account_the_order_is_the_order_of_asking(fleet: SchedulerFleet, look: Connection) -> None:
    jobs = of("one", 5)
    assert park(fleet, look, jobs) == [1, 2, 3, 4, 5]
    assert [one.request_id for one in fleet.wake([MODEL], 5)] == [one.request_id for one in jobs]


async def test_what_came_later_does_not_overtake_when_the_account_s_work_is_done_meanwhile(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    # Given a request that got a late turn, because much of its account was in flight,
    one = machine(capacity=8)
    await gateway.announce(one, routable=True)
    running = of("busy", 5)
    for started in running:
        assert fleet.claim(started, one.session_id, seconds=600)
    jobs = of("busy", 2)
    park(fleet, look, jobs[:1])
    # when all of that ends, and the account asks again,
    for started in running:
        fleet.release(started.request_id, started.attempt)
    park(fleet, look, jobs[1:])
    # then the first is still the first.
    assert [one.request_id for one in fleet.wake([MODEL], 2)] == [one.request_id for one in jobs]


async def test_nobody_starves_beside_an_account_that_always_comes_back(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = machine(capacity=1)
    await gateway.announce(one, routable=True)
    park(fleet, look, of("patient", 4))
    turns = []
    for _ in range(12):
        park(fleet, look, of("restless", 1))
        turns += served(fleet, one.session_id, 1)
    assert turns.count("patient") == 4


Step = tuple[Literal["ask", "serve", "end"], int]


@given(st.lists(st.tuples(st.sampled_from(["ask", "ask", "serve", "end"]), st.integers(0, 2)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_course_of_things_accounts_keep_their_order_and_the_queue_its_bound(
    fleet: SchedulerFleet, look: Connection, steps: list[Step]
) -> None:
    """Three accounts ask; whoever's turn it is gets a slot; slots come free. In the end everything is served once."""
    look.execute("TRUNCATE waiters, claims, fleet, fleet_models, model_demand, open_requests")
    depth_max = 5
    asked: dict[str, list[UUID]] = {"0": [], "1": [], "2": []}
    running: list[DispatchJob] = []
    served: dict[str, list[UUID]] = {"0": [], "1": [], "2": []}

    def serve() -> bool:
        for woken in fleet.wake([MODEL], 1):
            fleet.leave_queue(woken.request_id)
            look.execute(
                "INSERT INTO claims (request_id, attempt, session_id, account_id, model, output_tokens, gateway_id, "
                "expires_at) VALUES (%s, 1, gen_random_uuid(), %s, %s, 1, %s, now() + interval '1 hour')",
                (woken.request_id, woken.account_id, MODEL, GATEWAY),
            )
            running.append(woken)
            served[woken.account_id].append(woken.request_id)
            return True
        return False

    for what, number in steps:
        if what == "ask":
            [one] = of(str(number), 1)
            open_requests_of(look, one)
            before = waiting_by_account(look)
            place = fleet.park(one, seconds=600, depth_max=depth_max)
            if place is None:  # only when the queue is full, and nobody has more in it
                assert sum(before.values()) == depth_max
                assert max(before.values()) <= before[one.account_id] + 1
                continue
            asked[one.account_id].append(one.request_id)
            if place.shed is not None:  # only the newest of an account that has more in it
                assert sum(before.values()) == depth_max
                assert before[place.shed.account_id] > before[one.account_id] + 1
                assert asked[place.shed.account_id].pop() == place.shed.request_id
        elif what == "serve":
            serve()
        elif running:
            ended = running.pop(number % len(running))
            fleet.release(ended.request_id, ended.attempt)
        assert len(waiting(look)) <= depth_max
    while serve():
        pass
    assert served == asked


def waiting_by_account(look: Connection) -> Counter[str]:
    return Counter(row[0] for row in look.execute("SELECT account_id FROM waiters"))


async def test_who_floods_a_full_queue_makes_room_for_others(
    ledger: str, writer: LedgerWriter, gateway: GatewayFleet, look: Connection
) -> None:
    with open_pool(ledger, size_max=4) as pool:
        scene = SchedulerScene(writer, pool, queue_depth_max=3)
        requests_take(look, 6.0)
        await busy_machine(scene, gateway)
        greedy, elsewhere = [scene.asked() for _ in range(2)], scene.asked(reply_to=uuid4())
        modest = msgspec.structs.replace(scene.asked(), account_id="modest")
        for one in (*greedy, elsewhere, modest):
            scene.scheduler.dispatch(one)

    told = scene.mailbox.notices
    assert [type(notice) for _, notice in told] == [Waiting, Waiting, Waiting, Refused, Waiting]
    # The last of the greedy account is refused, at its own gateway and with the time to come back;
    assert told[3] == (
        elsewhere.reply_to,
        Refused(request_id=elsewhere.request_id, attempt=1, reason="queue_full", position=4, wait_seconds=None),
    )
    # the modest one waits behind the greedy account's first.
    assert told[4][1] == Waiting(request_id=modest.request_id, attempt=1, machines=1, position=2, wait_seconds=12.0)
    assert set(waiting(look)) == {*(one.request_id for one in greedy), modest.request_id}


async def test_whoever_makes_room_may_be_out_of_reach(
    ledger: str, writer: LedgerWriter, gateway: GatewayFleet, look: Connection
) -> None:
    with open_pool(ledger, size_max=4) as pool:
        scene = SchedulerScene(writer, pool, queue_depth_max=2)
        await busy_machine(scene, gateway)
        greedy = [scene.asked(), scene.asked(reply_to=uuid4())]
        modest = msgspec.structs.replace(scene.asked(), account_id="modest")
        for one in greedy:
            scene.scheduler.dispatch(one)
        scene.mailbox.gone.add(greedy[1].reply_to)
        scene.scheduler.dispatch(modest)
    assert set(waiting(look)) == {greedy[0].request_id, modest.request_id}


async def test_a_request_that_has_ended_takes_nobody_s_place(fleet: SchedulerFleet, look: Connection) -> None:
    park(fleet, look, of("greedy", 3))
    [ended] = of("modest", 1)
    assert fleet.park(ended, seconds=600, depth_max=3) is None
    assert len(waiting(look)) == 3


async def test_a_place_tells_how_many_are_served_before(fleet: SchedulerFleet, look: Connection) -> None:
    assert park(fleet, look, [*of("greedy", 4), *of("modest", 1)]) == [1, 2, 3, 4, 2]


async def test_a_machine_of_two_models_serves_the_longest_waiting_head_of_both_queues(
    fleet: SchedulerFleet, look: Connection
) -> None:
    jobs = [*of("one", 2), *of("two", 2, model="second")]
    park(fleet, look, jobs)
    order = [woken.request_id for _ in range(4) for woken in fleet.wake([MODEL, "second"], 1)]
    assert order == [jobs[0].request_id, jobs[1].request_id, jobs[2].request_id, jobs[3].request_id]


# --- position, estimate, refusal -------------------------------------------------------------------------------------


def requests_take(look: Connection, seconds: float) -> None:
    look.execute(
        "INSERT INTO model_demand (model, slot_seconds) VALUES (%s, %s) "
        "ON CONFLICT (model) DO UPDATE SET slot_seconds = excluded.slot_seconds",
        (MODEL, seconds),
    )


async def busy_machine(scene: SchedulerScene, gateway: GatewayFleet) -> UUID:
    one = machine(capacity=1)
    await gateway.announce(one, routable=True)
    running = job()
    assert scene.fleet.claim(running, one.session_id, seconds=600)
    return running.request_id


async def test_whoever_waits_is_told_the_place_and_an_estimate(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    requests_take(look, 20.0)
    await busy_machine(scene, gateway)
    for _ in range(2):
        scene.scheduler.dispatch(scene.asked())

    notices = [notice for notice in scene.mailbox.take() if isinstance(notice, Waiting)]
    assert [(notice.machines, notice.position, notice.wait_seconds) for notice in notices] == [
        (1, 1, 20.0),
        (1, 2, 40.0),
    ]


async def test_without_experience_there_is_no_estimate_and_nobody_is_refused_for_it(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    await busy_machine(scene, gateway)
    scene.scheduler.dispatch(scene.asked())
    [notice] = scene.mailbox.take()
    assert isinstance(notice, Waiting)
    assert notice.wait_seconds is None


@pytest.mark.parametrize("busy", [True, False])
async def test_what_fits_no_machine_is_refused_at_once_and_leaves_the_queue(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection, busy: bool
) -> None:
    one = machine(capacity=1, total_memory_gb=64.0)
    await gateway.announce(one, routable=True)
    if busy:
        assert scene.fleet.claim(job(), one.session_id, seconds=600)
    wanted = scene.asked(size_gb=28.0, output_tokens=100_000)
    scene.scheduler.dispatch(wanted)

    assert scene.mailbox.take() == [Refused(request_id=wanted.request_id, attempt=1, reason="too_large")]
    assert look.execute("SELECT count(*) FROM waiters").fetchone() == (0,)


async def test_what_fits_a_machine_that_is_full_of_something_else_waits_for_it(
    scene: SchedulerScene, gateway: GatewayFleet
) -> None:
    full = machine(capacity=2, total_memory_gb=64.0, gpu_memory_active_gb=60.0)
    await gateway.announce(full, routable=True)
    scene.scheduler.dispatch(scene.asked(size_gb=28.0, output_tokens=10_000))
    [notice] = scene.mailbox.take()
    assert isinstance(notice, Waiting)


async def test_a_hopeless_wait_is_refused_at_once_and_leaves_the_queue(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    requests_take(look, 900.0)
    await busy_machine(scene, gateway)
    wanted = scene.asked()
    scene.scheduler.dispatch(wanted)

    refusal = Refused(request_id=wanted.request_id, attempt=1, reason="hopeless", position=1, wait_seconds=900.0)
    assert scene.mailbox.take() == [refusal]
    assert waiting(look) == []


async def test_a_request_that_waits_already_is_not_sent_away_when_the_queue_slows_down(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    await busy_machine(scene, gateway)
    wanted = scene.asked()
    scene.scheduler.dispatch(wanted)
    requests_take(look, 900.0)
    scene.scheduler.dispatch(wanted)

    assert [type(notice) for notice in scene.mailbox.take()] == [Waiting, Waiting]
    assert waiting(look) == [wanted.request_id]


async def test_for_how_long_requests_take_a_slot_is_learnt_from_those_that_end(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    running = await busy_machine(scene, gateway)
    look.execute("UPDATE claims SET claimed_at = now() - interval '30 seconds'")
    await gateway.release(running, 1)
    await gateway.flush()

    row = look.execute("SELECT slot_seconds FROM model_demand WHERE model = %s", (MODEL,)).fetchone()
    assert row is not None
    assert 30 <= row[0] < 35
    assert claims(look) == {}


async def test_that_somebody_asked_for_a_model_is_known(scene: SchedulerScene, look: Connection) -> None:
    scene.scheduler.dispatch(scene.asked(reply_to=uuid4()))
    assert look.execute("SELECT model FROM model_demand WHERE asked_at > now() - interval '1 minute'").fetchall() == [
        (MODEL,)
    ]
