"""Many machines at once, and machines that come and go: the table stays true, whoever asks meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Generator
from uuid import UUID, uuid4

import pytest

from adapters.postgres.pool import make_async_pool, open_pool
from adapters.scheduler.fleet import SchedulerFleet
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.routing import Snapshot
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import assert_counters_are_true, claims, connected, job, lease, machine
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

OTHER_GATEWAY = uuid4()
STORM = 1_000


@pytest.fixture
def fleet(ledger: str) -> Generator[SchedulerFleet, None, None]:
    with open_pool(ledger, size_max=8) as pool:
        yield SchedulerFleet(pool)


@pytest.fixture
async def gateways(ledger: str, look: Connection) -> AsyncGenerator[list[GatewayFleet], None]:
    for gateway_id in (GATEWAY, OTHER_GATEWAY):
        lease(look, gateway_id)
    async with make_async_pool(ledger, size_max=5) as one, make_async_pool(ledger, size_max=5) as two:
        yield [
            GatewayFleet(one, lambda: GATEWAY, relayed=True),
            GatewayFleet(two, lambda: OTHER_GATEWAY, relayed=True),
        ]


def a_machine(number: int, gateway_id: UUID, **changes: object) -> Snapshot:
    facts = {"machine_id": f"{number:064x}", "gateway_id": gateway_id} | changes
    return machine(**facts)  # type: ignore[arg-type]


def routable(look: Connection) -> list[tuple[str, str]]:
    """Machine and session of every row that may be routed to."""
    rows = look.execute("SELECT machine_id, session_id::text FROM fleet WHERE routable ORDER BY 1, 2").fetchall()
    return [(row[0], row[1]) for row in rows]


async def test_a_storm_of_registrations_leaves_every_machine_in_the_table_once(
    fleet: SchedulerFleet, gateways: list[GatewayFleet], look: Connection
) -> None:
    """As after a gateway died: all of its machines come back within a moment, while requests go on."""
    machines = [a_machine(number, (GATEWAY, OTHER_GATEWAY)[number % 2], capacity=2) for number in range(STORM)]

    async def register(number: int, one: Snapshot) -> None:
        gateway = gateways[number % 2]
        await gateway.meet(one)
        await gateway.announce(one, routable=True)

    def ask() -> int:
        chance, taken = random.Random(1), 0
        for _ in range(300):
            wanted = job()
            if fleet.claim(wanted, chance.choice(machines).session_id, seconds=600):
                taken += 1
                if chance.random() < 0.5:
                    fleet.release(wanted.request_id, 1)
        return taken

    asking = [asyncio.to_thread(ask) for _ in range(2)]
    registering = [register(number, one) for number, one in enumerate(machines)]
    await asyncio.gather(*asking, *registering)

    assert routable(look) == sorted((one.machine_id, one.session_id) for one in machines)
    assert look.execute("SELECT count(*) FROM fleet_models WHERE routable").fetchall() == [(STORM,)]
    assert_counters_are_true(look)


async def test_heartbeats_of_a_thousand_machines_are_written_with_one_tick(
    gateways: list[GatewayFleet], look: Connection
) -> None:
    gateway, machines = gateways[0], [a_machine(number, GATEWAY) for number in range(STORM)]
    for one in machines:
        gateway.note(one, routable=True)
    for one in machines:  # a later heartbeat in the same tick is the one that counts
        gateway.note(a_machine(int(one.machine_id, 16), GATEWAY, session_id=one.session_id, capacity=3), routable=True)

    await gateway.flush()

    assert look.execute("SELECT count(*), min(capacity), max(capacity) FROM fleet").fetchall() == [(STORM, 3, 3)]


async def test_machines_that_come_and_go_beside_claims_leave_nothing_behind(
    fleet: SchedulerFleet, gateways: list[GatewayFleet], look: Connection
) -> None:
    sessions: list[Snapshot] = []

    async def flap(number: int) -> None:
        chance = random.Random(number)
        for turn in range(8):
            which = chance.randrange(2)
            one = a_machine(number, (GATEWAY, OTHER_GATEWAY)[which], capacity=2)
            sessions.append(one)
            await gateways[which].meet(one)
            await gateways[which].announce(one, routable=True)
            await asyncio.sleep(0)
            if turn < 7:
                await gateways[which].withdraw(one.session_id)

    def ask() -> None:
        chance = random.Random(7)
        for _ in range(200):
            if sessions:
                wanted = job()
                if fleet.claim(wanted, chance.choice(sessions).session_id, seconds=600) and chance.random() < 0.8:
                    fleet.release(wanted.request_id, 1)

    asking = [asyncio.to_thread(ask) for _ in range(3)]
    await asyncio.gather(*asking, *(flap(number) for number in range(20)))

    last = {one.machine_id: one.session_id for one in sessions}
    assert routable(look) == sorted(last.items())
    assert set(claims(look).values()) <= set(last.values())
    assert_counters_are_true(look)


async def test_a_machine_that_moved_gets_no_work_on_its_old_connection(
    fleet: SchedulerFleet, gateways: list[GatewayFleet], look: Connection
) -> None:
    """The old gateway may not know for a while that nobody is at the other end."""
    old = await connected(gateways[0], gateway_id=GATEWAY)
    assert fleet.claim(job(), old.session_id, seconds=600)

    new = await connected(gateways[1], gateway_id=OTHER_GATEWAY, machine_id=old.machine_id)

    assert routable(look) == [(old.machine_id, new.session_id)]
    assert [one.snapshot.session_id for one in fleet.machines_for(MODEL, None)] == [new.session_id]
    assert not fleet.claim(job(), old.session_id, seconds=600)
    await gateways[0].withdraw(old.session_id)
    assert routable(look) == [(old.machine_id, new.session_id)]
    assert_counters_are_true(look)


async def test_machines_that_claim_the_same_serial_number_are_two_machines(
    fleet: SchedulerFleet, gateways: list[GatewayFleet], look: Connection
) -> None:
    """Nothing proves a serial number here; the signing key tells machines apart."""
    one, two = [await connected(gateways[0], gateway_id=GATEWAY, serial="C02ABC") for _ in range(2)]
    assert {found.snapshot.session_id for found in fleet.machines_for(MODEL, None, allowed=["C02ABC"])} == {
        one.session_id,
        two.session_id,
    }
    await gateways[0].withdraw(one.session_id)
    assert routable(look) == [(two.machine_id, two.session_id)]
