"""How machines fare, kept by machine: written in batches, known to every scheduler, back after a reconnection."""

from __future__ import annotations

import time
from collections.abc import Generator
from random import Random
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from adapters.postgres.pool import make_async_pool, open_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.decision import Decision
from adapters.scheduler.fleet import NARROWED_MAX, SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import Assigned, DispatchJob
from domain.routing import Candidate, Constraints, Demand, Health, Observation, Policy, Snapshot, choose
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import assert_counters_are_true, connected, job, lease, machine
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

POLICY = Policy()
DEMAND = Demand(MODEL, 100, 50)


@pytest.fixture
def fleet(ledger: str) -> Generator[SchedulerFleet, None, None]:
    with open_pool(ledger, size_max=2) as pool:
        yield SchedulerFleet(pool)


async def fail(gateway: GatewayFleet, one: Snapshot, times: int) -> None:
    for _ in range(times):
        gateway.observe(one.machine_id, Observation("job_failed", time.time()))
    await gateway.flush()


def chosen(fleet: SchedulerFleet, demand: Demand = DEMAND) -> str:
    """The machine that a request gets now, or an empty text."""
    choice = Decision(fleet, POLICY, Random(1)).choose(demand, GATEWAY)
    return choice.candidate.snapshot.machine_id if choice else ""


async def test_a_machine_that_fails_fast_is_put_aside_for_all_schedulers(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    black_hole = await connected(gateway, decode_tps=500.0)
    good = await connected(gateway, decode_tps=5.0)
    assert chosen(fleet) == black_hole.machine_id

    await fail(gateway, black_hole, 2)
    assert chosen(fleet) == black_hole.machine_id
    await fail(gateway, black_hole, 1)

    assert chosen(fleet) == good.machine_id
    [told] = [one for one in fleet.machines_for(MODEL, GATEWAY) if one.snapshot == black_hole]
    assert told.health.failures_in_row == 3


async def test_to_connect_again_does_not_heal_a_machine(fleet: SchedulerFleet, gateway: GatewayFleet) -> None:
    black_hole, good = await connected(gateway, decode_tps=500.0), await connected(gateway, decode_tps=5.0)
    await fail(gateway, black_hole, 3)
    await gateway.withdraw(black_hole.session_id)
    gateway.forget(black_hole.machine_id)

    await connected(gateway, machine_id=black_hole.machine_id, decode_tps=500.0)

    assert gateway.health_of(black_hole.machine_id).failures_in_row == 3
    assert chosen(fleet) == good.machine_id


async def test_a_machine_put_aside_by_another_gateway_stays_so_when_its_own_announces_it_anew(
    fleet: SchedulerFleet, gateway: GatewayFleet, ledger: str, look: Connection
) -> None:
    """Its own gateway slept, or the table was lost: what that gateway remembers of the machine is old."""
    black_hole = await connected(gateway)
    async with make_async_pool(ledger, size_max=2) as pool:
        await fail(GatewayFleet(pool, lambda: GATEWAY), black_hole, 3)
    look.execute("DELETE FROM fleet_models")
    look.execute("DELETE FROM fleet")

    await gateway.announce(black_hole, routable=True)

    assert look.execute("SELECT put_aside_until > now() FROM fleet_models").fetchall() == [(True,)]


async def test_one_probe_at_a_time_goes_to_a_machine_whose_time_is_up(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    black_hole, good = await connected(gateway, decode_tps=500.0), await connected(gateway, decode_tps=5.0)
    for _ in range(3):
        gateway.observe(black_hole.machine_id, Observation("job_failed", time.time() - 20.0))
    await gateway.flush()

    assert chosen(fleet) == black_hole.machine_id
    assert fleet.claim(job(), black_hole.session_id, seconds=60)
    assert chosen(fleet) == good.machine_id

    gateway.observe(black_hole.machine_id, Observation("job_done", time.time(), 200.0))
    assert (await gateway.flush()).changed == [black_hole.machine_id]
    assert gateway.health_of(black_hole.machine_id).put_aside_until == 0.0
    assert_counters_are_true(look)


async def test_two_schedulers_that_see_the_same_machine_on_trial_send_it_one_request(
    ledger: str, writer: LedgerWriter, gateway: GatewayFleet, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole, good = await connected(gateway, decode_tps=500.0), await connected(gateway, decode_tps=5.0)
    for _ in range(3):
        gateway.observe(hole.machine_id, Observation("job_failed", time.time() - 20.0))
    await gateway.flush()
    with open_pool(ledger, size_max=2) as pool:
        scene = SchedulerScene(writer, pool)
        claim = scene.fleet.claim

        # Given that another scheduler is faster between this one's look and its claim,
        def outrun(job_: DispatchJob, session_id: str, **options: Any) -> bool:
            monkeypatch.setattr(scene.fleet, "claim", claim)
            assert session_id == hole.session_id
            assert claim(job(), session_id, seconds=60)
            return claim(job_, session_id, **options)

        monkeypatch.setattr(scene.fleet, "claim", outrun)
        scene.scheduler.dispatch(scene.asked())

    # then the request goes to the machine that is not on trial.
    [assigned] = scene.mailbox.take()
    assert isinstance(assigned, Assigned)
    assert assigned.machine.session_id == good.session_id
    assert_counters_are_true(look)


async def test_a_machine_that_is_put_aside_is_asked_when_no_healthy_one_offers_the_model(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    alone = await connected(gateway)
    await fail(gateway, alone, 5)
    assert chosen(fleet) == alone.machine_id

    busy = await connected(gateway, capacity=1)
    assert fleet.claim(job(), busy.session_id, seconds=60)
    assert chosen(fleet) == ""  # a healthy one is only busy: the request waits for it


async def test_observations_of_a_tick_are_written_at_once_and_none_is_lost(
    gateway: GatewayFleet, look: Connection
) -> None:
    machines = [await connected(gateway) for _ in range(20)]
    for one in machines:
        for kind in ("job_done", "challenge_passed", "uptime"):
            gateway.observe(one.machine_id, Observation(kind, time.time(), 60.0))  # type: ignore[arg-type]
    await gateway.flush()
    await gateway.flush()

    expected = Health(jobs_done=1, answer_ms=60.0, challenges_passed=1, uptime_seconds=60.0)
    assert {gateway.health_of(one.machine_id) for one in machines} == {expected}


async def test_a_lost_table_of_health_makes_every_machine_neutral_and_breaks_nothing(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    one = await connected(gateway)
    look.execute("TRUNCATE machine_health")
    await fail(gateway, one, 3)
    assert chosen(fleet) == one.machine_id


# --- candidates ------------------------------------------------------------------------------------------------------


async def test_the_index_s_choice_costs_what_the_whole_fleet_s_would(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    random = Random(2_026)
    machines = [
        machine(
            machine_id=uuid4().hex * 2,
            capacity=4,
            decode_tps=random.uniform(10, 120),
            prefill_tps=random.uniform(40, 900),
            memory_pressure=random.random(),
            thermal_state=random.choice(("nominal", "fair", "serious")),
        )
        for _ in range(300)
    ]
    for one in machines:
        gateway.note(one, routable=True)
    await gateway.flush()
    for one in random.sample(machines, 200):
        fleet.claim(job(output_tokens=200), one.session_id, seconds=60)

    for _ in range(50):
        demand = Demand(MODEL, int(10 ** random.uniform(1, 4)), int(10 ** random.uniform(1, 3.5)))
        narrowed = fleet.cheapest(demand, POLICY, GATEWAY).candidates
        assert len(narrowed) < 50
        assert _best_ms(narrowed, demand) <= 1.02 * _best_ms(fleet.machines_for(MODEL, GATEWAY), demand)


def _best_ms(candidates: list[Candidate], demand: Demand) -> float:
    best = choose(candidates, demand, Policy(near_tie_ms=0.0), Random(1), now=time.time())
    assert best is not None
    return best.cost.total_ms


async def test_what_the_index_leaves_out_is_found_when_nothing_else_will_do(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    # Given more machines that look better and already failed the request than the index gives back,
    failed = [await connected(gateway, decode_tps=400.0) for _ in range(30)]
    slow = await connected(gateway, decode_tps=1.0)
    excluded = frozenset(one.session_id for one in failed)
    # then the one behind them is found all the same.
    assert chosen(fleet, Demand(MODEL, 100, 50, excluded=excluded)) == slow.machine_id


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        (Constraints(allowed=("C02EXAMPLE01",)), "named"),
        (Constraints(only_account="me"), "mine"),
        (Constraints(preferred_account="me"), "mine"),
        (Constraints(preferred_account="nobody"), "fast"),
        (Constraints(only_account="nobody"), ""),
        (Constraints(allowed=("C02EXAMPLE02",)), ""),
    ],
)
async def test_constraints_are_met(
    fleet: SchedulerFleet, gateway: GatewayFleet, constraints: Constraints, expected: str
) -> None:
    machines = {
        "fast": await connected(gateway, decode_tps=500.0),
        "mine": await connected(gateway, account_id="me", decode_tps=5.0),
        "named": await connected(gateway, serial="C02EXAMPLE01", decode_tps=5.0),
    }
    found = chosen(fleet, Demand(MODEL, 100, 50, constraints=constraints))
    assert found == (machines[expected].machine_id if expected else "")


@pytest.mark.parametrize("facts", [{"private_only": True}, {"trust_level": "none"}], ids=["private", "little trust"])
async def test_what_is_somebody_s_own_is_found_by_its_owner_alone(
    fleet: SchedulerFleet, gateway: GatewayFleet, facts: dict[str, object]
) -> None:
    own = machine(machine_id="cd" * 32, account_id="me", serial="C02MINE", decode_tps=500.0, **facts)
    await gateway.meet(own)
    await gateway.announce(own, routable=True, withheld=own.models)
    asked = (
        Constraints(),
        Constraints(allowed=("C02MINE",)),
        Constraints(preferred_account="somebody"),
        Constraints(only_account="somebody"),
    )
    for constraints in asked:
        demand = Demand(MODEL, 100, 50, constraints=constraints)
        assert chosen(fleet, demand) == ""
        assert fleet.supply(demand, POLICY, GATEWAY)[:3] == (0, 0, 0)
    for constraints in (Constraints(only_account="me"), Constraints(preferred_account="me")):
        demand = Demand(MODEL, 100, 50, constraints=constraints)
        assert chosen(fleet, demand) == own.machine_id
        assert fleet.supply(demand, POLICY, GATEWAY)[:3] == (1, 1, 1)
    assert await gateway.offers(MODEL) == await gateway.offers(MODEL, own_account="somebody") == []
    assert await gateway.offers(MODEL, own_account="me") == [own]


async def test_machines_of_other_gateways_are_candidates_once_gateways_relay(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    elsewhere = await connected(gateway, gateway_id=uuid4())
    assert Decision(fleet, POLICY, Random(1)).choose(DEMAND, GATEWAY) is None
    choice = Decision(fleet, POLICY, Random(1), relayed=True).choose(DEMAND, GATEWAY)
    assert choice is not None
    assert choice.candidate.snapshot == elsewhere


async def test_a_machine_that_another_gateway_put_aside_stays_so_when_its_own_announces_it(
    ledger: str, fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    """Its own gateway does not know yet how it fared with the consumers of others."""
    hole, good = await connected(gateway, decode_tps=500.0), await connected(gateway, decode_tps=5.0)
    async with make_async_pool(ledger, size_max=1) as pool:
        await fail(GatewayFleet(pool, uuid4, relayed=True), hole, 3)
    assert gateway.health_of(hole.machine_id).failures_in_row == 0

    await gateway.announce(msgspec.structs.replace(hole, capacity=hole.capacity + 1), routable=True)

    narrowed = fleet.cheapest(DEMAND, POLICY, None)
    assert [one.snapshot for one in narrowed.candidates] == [good]


async def test_a_gateway_out_of_reach_takes_all_its_machines_with_it(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    out_of_reach = uuid4()
    for _ in range(NARROWED_MAX + 1):
        await connected(gateway, gateway_id=out_of_reach, decode_tps=500.0)
    good = await connected(gateway, decode_tps=5.0)
    demand = msgspec.structs.replace(DEMAND, excluded=frozenset({str(out_of_reach)}))

    choice = Decision(fleet, POLICY, Random(1), relayed=True).choose(demand, GATEWAY)

    assert choice is not None
    assert choice.candidate.snapshot == good


async def test_a_model_that_a_machine_cannot_serve_is_not_routed_to_it(
    fleet: SchedulerFleet, gateway: GatewayFleet
) -> None:
    one = machine(models=(MODEL, "broken"), capacity=2)
    await gateway.announce(one, routable=True, withheld=["broken"])
    assert chosen(fleet) == one.machine_id
    assert chosen(fleet, Demand("broken", 1, 1)) == ""
    assert await gateway.offers("broken") == []


async def test_a_machine_that_says_the_same_again_leaves_the_index_alone(
    gateway: GatewayFleet, look: Connection
) -> None:
    one = await connected(gateway)
    rows = "SELECT xmin::text FROM fleet_models"
    before = look.execute(rows).fetchall()
    touched = "SELECT updated_at FROM fleet"
    [(announced_at,)] = look.execute(touched).fetchall()

    gateway.note(machine(**(_facts(one) | {"memory_pressure": 0.001})), routable=True)
    await gateway.flush()
    assert look.execute(rows).fetchall() == before
    [(noted_at,)] = look.execute(touched).fetchall()
    assert noted_at > announced_at

    gateway.note(machine(**(_facts(one) | {"memory_pressure": 0.5})), routable=True)
    await gateway.flush()
    assert look.execute(rows).fetchall() != before


async def test_a_machine_that_is_touched_stays_and_one_that_the_table_lost_is_named(
    fleet: SchedulerFleet, gateway: GatewayFleet, look: Connection
) -> None:
    lease(look)
    known, lost = await connected(gateway), await connected(gateway)
    look.execute("UPDATE fleet SET updated_at = now() - interval '4 minutes'")
    look.execute("DELETE FROM fleet WHERE session_id = %s", (lost.session_id,))
    before = look.execute("SELECT snapshot FROM fleet").fetchall()

    gateway.touch(known.session_id)
    gateway.touch(lost.session_id)
    flushed = await gateway.flush()
    fleet.sweep()

    assert flushed.missing == [lost.session_id]
    assert look.execute("SELECT snapshot FROM fleet").fetchall() == before
    assert (await gateway.flush()).missing == []


async def test_a_machine_that_left_since_it_was_touched_is_not_missed(gateway: GatewayFleet) -> None:
    one = await connected(gateway)
    gateway.touch(one.session_id)
    await gateway.withdraw(one.session_id)
    assert (await gateway.flush()).missing == []


def _facts(one: Snapshot) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("session_id", "machine_id", "capacity", "challenge_passed_at")}


@pytest.mark.parametrize("withdrawn", [False, True], ids=["announced", "withdrawn"])
async def test_what_was_noted_does_not_come_after_what_is_known_since(
    fleet: SchedulerFleet, gateway: GatewayFleet, monkeypatch: pytest.MonkeyPatch, withdrawn: bool
) -> None:
    # Given a note that a tick has begun to write, and news that must be known at once while it does
    one = await connected(gateway)
    gateway.note(one, routable=True)
    gateway.observe(one.machine_id, Observation("job_failed", time.time()))
    write_health = gateway._write_health

    async def news_comes_meanwhile(*given: Any) -> list[str]:
        changed = await write_health(*given)
        if withdrawn:
            await gateway.withdraw(one.session_id)
        else:
            await gateway.announce(one, routable=False)
        return changed

    monkeypatch.setattr(gateway, "_write_health", news_comes_meanwhile)
    # When the tick goes on
    await gateway.flush()
    # Then the machine gets nothing
    assert chosen(fleet) == ""
