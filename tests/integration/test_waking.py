"""What comes free wakes the first in the queue whom it can serve, on PostgreSQL, from gateways and from schedulers."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from adapters.scheduler import waking
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import Assigned, DispatchJob, Waiting
from domain.routing import Constraints, SlotState
from tests.support.ledger_commands import MODEL, release
from tests.support.ledger_machines import job, machine, open_requests_of
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

IMAGES = "acme/images"
OWNER = "acct-owner"
MINE = Constraints(only_account=OWNER)


def two_engines(*, images: int = 1, texts: int = 2, **facts: Any) -> Any:
    """A machine with an engine for images and one for text."""
    slots = {IMAGES: SlotState("running", max_concurrency=images), MODEL: SlotState("running", max_concurrency=texts)}
    return machine(models=(IMAGES, MODEL), capacity=images + texts, slots=slots, **facts)


async def work(scene: SchedulerScene, look: Connection, session_id: str, *models: str) -> list[DispatchJob]:
    """Give a machine work."""
    jobs = [job(model=model) for model in models]
    open_requests_of(look, *jobs)
    for one in jobs:
        assert await asyncio.to_thread(scene.fleet.claim, one, session_id, seconds=600)
    return jobs


async def wait(scene: SchedulerScene, look: Connection, *jobs: DispatchJob) -> None:
    open_requests_of(look, *jobs)
    for one in jobs:
        assert await asyncio.to_thread(scene.fleet.park, one, seconds=600, depth_max=100)


def ids(jobs: list[DispatchJob]) -> list[UUID]:
    return [one.request_id for one in jobs]


async def test_a_slot_is_not_offered_to_whoever_waits_for_an_engine_that_is_full(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    # Given a machine whose engines are both full, and who waits longest waits for the one that stays so,
    one = two_engines()
    await gateway.announce(one, routable=True)
    image, text, _ = await work(scene, look, one.session_id, IMAGES, MODEL, MODEL)
    for_image, for_text, later = job(model=IMAGES), job(), job()
    await wait(scene, look, for_image, for_text, later)

    assert ids(await gateway.release(text.request_id, 1)) == [for_text.request_id]
    assert await asyncio.to_thread(scene.fleet.claim, for_text, one.session_id, seconds=600)
    assert ids(await gateway.release(image.request_id, 1)) == [for_image.request_id]


async def test_what_is_somebody_s_own_wakes_its_owner_alone(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = two_engines(account_id=OWNER, private_only=True, trust_level="none")
    stranger, owner = job(), job(account_id=OWNER, constraints=MINE)
    await wait(scene, look, stranger, owner)

    assert ids(await gateway.announce(one, routable=True, withheld=one.models)) == [owner.request_id]


async def test_whom_no_slot_serves_keeps_nobody_from_one_however_long_the_queue(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = two_engines(images=1, texts=1)
    await gateway.announce(one, routable=True)
    _, text = await work(scene, look, one.session_id, IMAGES, MODEL)
    unserved = [job(constraints=Constraints(only_account="acct-nobody")) for _ in range(waking.LOOKS[0] + 1)]
    last = job(account_id="acct-last")
    await wait(scene, look, *unserved, last)

    assert ids(await gateway.release(text.request_id, 1)) == [last.request_id]


async def test_slots_that_come_free_at_once_wake_as_many_at_least(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    one = two_engines(images=1, texts=4)
    await gateway.announce(one, routable=True)
    running = await work(scene, look, one.session_id, *[MODEL] * 4)
    queue = [job() for _ in range(6)]
    await wait(scene, look, *queue)

    woken = await asyncio.gather(*(gateway.release(done.request_id, 1) for done in running))

    # One who was just woken has not claimed yet, so that slot may be offered to one more.
    found = ids([one for some in woken for one in some])
    assert set(ids(queue[:4])) <= set(found)
    assert len(found) == len(set(found))


async def test_a_scheduler_that_does_not_use_its_claim_wakes_who_waits(
    scene: SchedulerScene, gateway: GatewayFleet, look: Connection
) -> None:
    # Given one slot, and somebody who waits for it,
    one = machine(capacity=1)
    await gateway.announce(one, routable=True)
    blocking, waits = scene.asked(), scene.asked()
    await asyncio.to_thread(scene.scheduler.dispatch, blocking)
    await asyncio.to_thread(scene.scheduler.dispatch, waits)
    assert [type(notice) for notice in scene.mailbox.take()] == [Assigned, Waiting]
    # when it comes free for a request that has ended meanwhile,
    ended = scene.asked()
    scene.writer.execute(release(scene.consumer, ended.request_id))
    look.execute("UPDATE waiters SET woken_at = now()")  # whose own wake is still on its way
    await gateway.release(blocking.request_id, 1)
    look.execute("UPDATE waiters SET woken_at = NULL")
    await asyncio.to_thread(scene.scheduler.dispatch, ended)
    # then the next one has it.
    assert ids(scene.resent) == [waits.request_id]
