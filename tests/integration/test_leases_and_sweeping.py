"""Leases and the sweeper: what a dead gateway or a passed deadline left open is ended, once, and nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, make_async_pool, open_pool
from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.leases import GatewayLease
from domain.dispatch import ReleaseJob, SettleJob
from domain.errors import UnknownRequest
from domain.requests import RequestReleased, job_id_of
from tests.support.ledger_commands import GATEWAY, MODEL, admit, dispatch, release, settle
from tests.support.ledger_machines import claims, job, lease, machine, waiting
from tests.support.ledger_scheduler import SchedulerScene
from tests.support.ledger_tables import assert_books_are_sound, balance_of, names_of, open_requests
from tests.support.ledger_waiting import Connection, terminate_sessions, until_in_loop

pytest_plugins = ["tests.support.ledger_fixtures"]

GRACE_SECONDS = 30.0


@pytest.fixture
def scene(ledger: str, writer: LedgerWriter) -> Generator[SchedulerScene, None, None]:
    with open_pool(ledger, size_max=4) as pool:
        yield SchedulerScene(writer, pool, lease_grace_seconds=GRACE_SECONDS)


@pytest.fixture
async def pool(ledger: str) -> AsyncGenerator[AsyncConnectionPool[AsyncConnection], None]:
    async with make_async_pool(ledger, size_max=3) as pool:
        yield pool


def dead_gateway(look: Connection) -> UUID:
    """A gateway whose lease lapsed longer ago than the grace."""
    gateway_id = uuid4()
    lease(look, gateway_id, lapsed_seconds=GRACE_SECONDS + 1)
    return gateway_id


# --- the sweeper -----------------------------------------------------------------------------------------------------


def test_requests_of_a_lapsed_gateway_are_released_after_the_grace_and_not_before(
    scene: SchedulerScene, look: Connection
) -> None:
    left_open = scene.admitted(), scene.admitted()
    balance = balance_of(look, scene.consumer)

    for lapsed_seconds in (-600.0, 0.0, GRACE_SECONDS - 5):
        lease(look, lapsed_seconds=lapsed_seconds)
        assert scene.scheduler.sweep() == 0
    assert set(open_requests(look)) == set(left_open)

    lease(look, lapsed_seconds=GRACE_SECONDS + 1)
    assert scene.scheduler.sweep() == 2
    assert open_requests(look) == {}
    assert balance_of(look, scene.consumer) == balance + 200
    assert_books_are_sound(look)


def test_a_request_left_open_is_released_exactly_once(scene: SchedulerScene, look: Connection) -> None:
    left_open = scene.admitted()
    lease(look, lapsed_seconds=GRACE_SECONDS + 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: scene.scheduler.sweep(), range(8)))

    assert names_of(look, left_open).count("HoldReleased") == 1
    assert names_of(look, left_open)[-1] == "RequestReleased"
    assert scene.scheduler.sweep() == 0
    assert_books_are_sound(look)


def test_only_the_dead_gateway_s_requests_are_released(scene: SchedulerScene, look: Connection) -> None:
    dead, alive = uuid4(), uuid4()
    lease(look, dead, lapsed_seconds=GRACE_SECONDS + 1)
    lease(look, alive)
    scene.admitted(gateway_id=dead)
    kept = scene.admitted(gateway_id=alive)

    assert scene.scheduler.sweep() == 1

    assert list(open_requests(look)) == [kept]
    assert_books_are_sound(look)


def test_a_request_of_a_gateway_that_nobody_knows_is_released(scene: SchedulerScene, look: Connection) -> None:
    """It came and went while the database was away, or its row was forgotten."""
    scene.admitted(gateway_id=uuid4())
    look.execute("UPDATE open_requests SET admitted_at = now() - make_interval(secs => %s)", (GRACE_SECONDS + 1,))

    assert scene.scheduler.sweep() == 1

    assert open_requests(look) == {}


def test_an_expired_hold_is_released_though_its_gateway_lives(scene: SchedulerScene, look: Connection) -> None:
    lease(look)
    expired = scene.admitted(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    kept = scene.admitted(expires_at=datetime.now(UTC) + timedelta(seconds=600))

    assert scene.scheduler.sweep() == 1

    assert list(open_requests(look)) == [kept]
    assert names_of(look, expired)[-1] == "RequestReleased"
    assert_books_are_sound(look)


def test_the_log_says_that_a_swept_request_expired(scene: SchedulerScene, look: Connection) -> None:
    left_open = scene.admitted(gateway_id=dead_gateway(look))

    scene.scheduler.sweep()

    end = scene.writer.execute(release(scene.consumer, left_open))
    assert isinstance(end, RequestReleased)
    assert end.reason == "expired"


def test_a_completion_that_comes_after_the_sweep_changes_nothing(scene: SchedulerScene, look: Connection) -> None:
    left_open = scene.admitted(gateway_id=dead_gateway(look))
    scene.writer.execute(dispatch(left_open))
    scene.scheduler.sweep()
    balance = balance_of(look, scene.consumer)

    end = scene.writer.execute(settle(scene.consumer, left_open, 50))

    assert isinstance(end, RequestReleased)
    assert balance_of(look, scene.consumer) == balance
    assert_books_are_sound(look)


def test_a_completion_before_the_sweep_is_kept(scene: SchedulerScene, look: Connection) -> None:
    done = scene.admitted(gateway_id=dead_gateway(look))
    scene.writer.execute(dispatch(done))
    scene.writer.execute(settle(scene.consumer, done, 50))

    assert scene.scheduler.sweep() == 0

    assert names_of(look, done).count("RequestSettled") == 1
    assert_books_are_sound(look)


def test_a_swept_request_leaves_the_queue(scene: SchedulerScene, look: Connection) -> None:
    dead = uuid4()
    lease(look, dead, lapsed_seconds=GRACE_SECONDS + 1)
    wanted = scene.asked(reply_to=dead)
    assert scene.fleet.park(wanted, seconds=600, depth_max=10)

    scene.scheduler.sweep()

    assert waiting(look) == []


def test_a_sweep_sends_waiting_requests_on_their_way_again(scene: SchedulerScene, look: Connection) -> None:
    lease(look)
    first, second = scene.asked(), scene.asked()
    for wanted in (first, second):
        scene.fleet.park(wanted, seconds=600, depth_max=10)

    scene.scheduler.sweep()

    assert scene.resent == [first, second]


def test_more_than_one_sweep_takes_are_released_by_the_next(
    scene: SchedulerScene, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.scheduler.scheduler.SWEEP_REQUESTS_MAX", 2)
    requests = [scene.admitted(gateway_id=dead_gateway(look)) for _ in range(5)]

    assert [scene.scheduler.sweep() for _ in range(4)] == [2, 2, 1, 0]

    released = [name for request in requests for name in names_of(look, request) if name == "RequestReleased"]
    assert len(released) == 5


def test_one_request_that_cannot_be_released_does_not_keep_the_others_open(
    scene: SchedulerScene, look: Connection
) -> None:
    """The row of a request that the log does not know, as after a restore of half a database."""
    ghost = uuid4()
    look.execute(
        "INSERT INTO open_requests VALUES (%s, 'acct-ghost', %s, %s, 1, '2000-01-01Z', '2000-01-02Z')",
        (ghost, GATEWAY, MODEL),
    )
    left_open = scene.admitted(gateway_id=dead_gateway(look))

    scene.scheduler.sweep()

    assert left_open not in open_requests(look)


def test_gateways_that_ended_long_ago_are_forgotten_once_nothing_of_theirs_is_open(
    scene: SchedulerScene, look: Connection
) -> None:
    day = 86_400.0
    long_gone, gone, alive = uuid4(), uuid4(), uuid4()
    lease(look, long_gone, lapsed_seconds=day + 60)
    lease(look, gone, lapsed_seconds=day - 60)
    lease(look, alive)
    scene.admitted(gateway_id=long_gone)

    scene.scheduler.sweep()  # ends what is open
    scene.scheduler.sweep()

    left = {row[0] for row in look.execute("SELECT gateway_id FROM gateways")}
    assert left == {gone, alive}


def test_the_scheduler_s_ends_are_the_gateway_s_ends(scene: SchedulerScene, look: Connection) -> None:
    """A completion or a release that comes through the broker, perhaps twice, ends the request once."""
    done, failed = scene.admitted(), scene.admitted()
    scene.writer.execute(dispatch(done))
    completion = SettleJob(
        request_id=done,
        account_id=scene.consumer,
        job_id=str(job_id_of(done, 1)),
        claimed_prompt_tokens=0,
        claimed_completion_tokens=40,
        completion_bound=50,
    )
    for _ in range(2):
        scene.scheduler.settle(completion)
        scene.scheduler.release(ReleaseJob(request_id=failed, account_id=scene.consumer, reason="failed"))
    scene.scheduler.release(ReleaseJob(request_id=uuid4(), account_id=scene.consumer, reason="failed"))

    assert balance_of(look, scene.consumer) == 1_000_000 - 40
    assert names_of(look, done)[-1] == "HoldCaptured"
    assert names_of(look, failed)[-1] == "RequestReleased"
    assert_books_are_sound(look)
    with pytest.raises(UnknownRequest):
        scene.scheduler.settle(msgspec.structs.replace(completion, request_id=uuid4()))


# --- the lease -------------------------------------------------------------------------------------------------------


class Keeper:
    """A gateway that keeps its lease in the background, and notes the ids that it lost and those it went on under."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], *, seconds: float = 60.0) -> None:
        self.lost: list[UUID] = []
        self.went_on_as: list[UUID] = []
        self.lease = GatewayLease(
            pool,
            "http://gateway:8080",
            seconds=seconds,
            renew_seconds=0.02,
            on_lost=lambda: self.lost.append(self.lease.gateway_id),
            on_renamed=self._renamed,
        )

    async def _renamed(self) -> None:
        self.went_on_as.append(self.lease.gateway_id)

    async def take(self) -> UUID:
        await self.lease.take(self.lease.gateway_id)
        return self.lease.gateway_id

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncGenerator[UUID, None]:
        first = await self.take()
        task = asyncio.create_task(self.lease.keep())
        try:
            yield first
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def seconds_left(look: Connection, gateway_id: UUID) -> float | None:
    row = look.execute(
        "SELECT CASE WHEN isfinite(lease_until) THEN extract(epoch FROM lease_until - now()) ELSE -1 END "
        "FROM gateways WHERE gateway_id = %s",
        (gateway_id,),
    ).fetchone()
    return float(row[0]) if row else None


async def test_a_lease_that_is_kept_is_prolonged_under_the_same_id(
    pool: AsyncConnectionPool[AsyncConnection], look: Connection
) -> None:
    keeper = Keeper(pool)
    async with keeper.keeping() as first:
        look.execute("UPDATE gateways SET lease_until = now() + interval '20 seconds'")

        await until_in_loop(lambda: (seconds_left(look, first) or 0) > 30, "the lease is prolonged")

        assert keeper.lease.gateway_id == first
        assert keeper.went_on_as == []
    assert look.execute("SELECT internal_url FROM gateways").fetchall() == [("http://gateway:8080",)]


@pytest.mark.parametrize("how", ["it lapsed", "its row is gone", "everybody's ended"])
async def test_a_gateway_whose_lease_lapsed_says_so_and_goes_on_under_a_new_id(
    pool: AsyncConnectionPool[AsyncConnection], look: Connection, how: str
) -> None:
    keeper = Keeper(pool)
    async with keeper.keeping() as first:
        match how:
            case "it lapsed":
                look.execute("UPDATE gateways SET lease_until = now() - interval '1 second'")
            case "its row is gone":
                look.execute("DELETE FROM gateways")
            case _:
                look.execute(sql.END_ALL_LEASES)

        await until_in_loop(lambda: keeper.went_on_as, "the gateway notices")
        [second] = keeper.went_on_as
        assert keeper.lost == [first]
        assert second == keeper.lease.gateway_id != first
        assert (seconds_left(look, second) or 0) > 30
        assert (seconds_left(look, first) or -1.0) < 0
        # And the new one is kept as the old one was.
        look.execute("UPDATE gateways SET lease_until = now() + interval '20 seconds' WHERE gateway_id = %s", (second,))
        await until_in_loop(lambda: (seconds_left(look, second) or 0) > 30, "the new lease is prolonged")
        assert keeper.went_on_as == [second]


async def test_a_lapsed_lease_is_never_prolonged(pool: AsyncConnectionPool[AsyncConnection], look: Connection) -> None:
    """Others may have acted on its end already."""
    keeper = Keeper(pool)
    first = await keeper.take()
    look.execute("UPDATE gateways SET lease_until = now() - interval '1 millisecond'")

    assert await keeper.lease._renewed() is False

    assert (seconds_left(look, first) or 0) < 0


async def test_a_lost_connection_does_not_cost_the_lease(
    pool: AsyncConnectionPool[AsyncConnection], look: Connection
) -> None:
    keeper = Keeper(pool)
    async with keeper.keeping() as first:
        for _ in range(3):
            terminate_sessions(look)
            look.execute("UPDATE gateways SET lease_until = now() + interval '20 seconds'")
            await until_in_loop(lambda: (seconds_left(look, first) or 0) > 30, "the lease is prolonged")
    assert keeper.went_on_as == []


async def test_a_lease_that_cannot_be_renewed_in_its_time_is_lost(
    pool: AsyncConnectionPool[AsyncConnection], look: Connection
) -> None:
    keeper = Keeper(pool, seconds=0.2)
    async with keeper.keeping() as first:
        # Given a table that answers nobody for longer than the lease lasts
        with look.transaction():
            look.execute("LOCK TABLE gateways")
            await until_in_loop(lambda: keeper.lost, "the gateway gives its lease up by its own clock")
            # Then it goes on under no other name before that has a lease.
            assert keeper.lease.gateway_id == first
        await until_in_loop(lambda: keeper.went_on_as, "the gateway goes on")
    assert keeper.lost[0] == first


async def test_an_ended_lease_leaves_its_last_ends_the_grace_to_be_recorded(
    pool: AsyncConnectionPool[AsyncConnection], scene: SchedulerScene, look: Connection
) -> None:
    """They are with the scheduler when a gateway stops; a sweep before them would cost the machine its earning."""
    keeper = Keeper(pool)
    scene.admitted(gateway_id=await keeper.take())

    await keeper.lease.end()

    assert await asyncio.to_thread(scene.scheduler.sweep) == 0
    look.execute("UPDATE gateways SET lease_until = lease_until - interval '31 seconds'")
    assert await asyncio.to_thread(scene.scheduler.sweep) == 1
    assert open_requests(look) == {}


async def test_the_owner_of_a_database_ends_every_lease_before_its_own(
    pool: AsyncConnectionPool[AsyncConnection], scene: SchedulerScene, look: Connection
) -> None:
    """It starts after a crash: whoever held a lease is dead, and need not be waited for."""
    dead, owner = Keeper(pool), Keeper(pool)
    left_open = scene.admitted(gateway_id=await dead.take())

    await owner.lease.end_all()
    kept = scene.admitted(gateway_id=await owner.take())

    assert await asyncio.to_thread(scene.scheduler.sweep) == 1
    assert list(open_requests(look)) == [kept]
    assert names_of(look, left_open)[-1] == "RequestReleased"


async def test_what_a_gateway_admits_under_its_new_id_is_not_swept(
    pool: AsyncConnectionPool[AsyncConnection], scene: SchedulerScene, look: Connection
) -> None:
    """Whatever id it goes by from the moment it goes by it, that id has a lease."""
    keeper = Keeper(pool)
    async with keeper.keeping() as first:
        look.execute("UPDATE gateways SET lease_until = now() - interval '1 second'")
        await until_in_loop(lambda: keeper.lease.gateway_id != first, "the gateway has a new id")
        await scene.writer.run(admit(scene.consumer, 10, gateway_id=keeper.lease.gateway_id))

        assert await asyncio.to_thread(scene.scheduler.sweep) == 0

    assert len(open_requests(look)) == 1


def test_sweeping_frees_the_machine_of_a_lapsed_gateway(scene: SchedulerScene, look: Connection) -> None:
    lease(look, lapsed_seconds=1)
    one = machine()
    look.execute(
        "INSERT INTO fleet (session_id, gateway_id, machine_id, account_id, serial, capacity, routable, snapshot) "
        "VALUES (%s, %s, %s, '', '', 1, true, '')",
        (one.session_id, GATEWAY, one.machine_id),
    )
    assert scene.fleet.claim(job(), one.session_id, seconds=600)

    scene.scheduler.sweep()

    assert claims(look) == {}
    assert look.execute("SELECT count(*) FROM fleet").fetchone() == (0,)
