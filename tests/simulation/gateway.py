"""A gateway and a scheduler as processes of the simulation: the product's own parts on simulated surroundings."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import ContextVar
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import psycopg
from psycopg_pool import PoolTimeout

from adapters.postgres import sql
from adapters.relay.gateways import GatewayRelay
from adapters.relay.mailbox import GatewayUnreachable
from adapters.scheduler.actors import message_of, register, sweep_message
from adapters.scheduler.gateway_fleet import GatewayFleet
from adapters.scheduler.jobs import SchedulerJobs
from adapters.scheduler.leases import GatewayLease
from adapters.scheduler.scheduler import Scheduler
from api.consumer.rate_limits import Defaults, RateLimits
from api.coordinator import Coordinator
from api.identity.doorkeeper import Doorkeeper
from api.inbox import Inbox, Switchboard
from api.providers.socket import provider_socket
from domain.dispatch import DispatchJob, Job, Notice
from domain.protocol import Sealed
from tests.simulation import rules
from tests.simulation.broker import SimulatedBroker, SimulatedPublisher
from tests.simulation.ledger import SimulatedWriter
from tests.simulation.network import Connection, DatabaseDoor, GatewaySocket
from tests.simulation.pools import AsyncMemoryPool, MemoryPool
from tests.simulation.processes import Process, wait_for
from tests.simulation.relay import SimulatedTransport

if TYPE_CHECKING:
    from tests.simulation.market import Market

log = logging.getLogger(__name__)

SECRET = "simulated"
DRAIN_SECONDS = 10.0

opened: ContextVar[list[UUID] | None] = ContextVar("opened", default=None)
"""Where the id of a request goes that is opened in this context."""


class PlainSealing:
    """Seals nothing: what is simulated here has no secrets, and boxes would need true chance."""

    class Channel:
        public_key = "gateway-key"

        def seal(self, text: bytes) -> str:
            return text.decode()

        def open(self, sealed: str) -> bytes:
            return sealed.encode()

    def channel(self, provider_key: str) -> PlainSealing.Channel:
        return self.Channel()

    def is_key(self, provider_key: str) -> bool:
        return True

    def verify(self, public_key: str, signature: str, message: bytes) -> None:
        if signature != signed_by(public_key):
            raise ValueError("not signed by this key")

    def raw_key(self, public_key: str) -> bytes:
        return public_key.encode()


def signed_by(public_key: str) -> str:
    return f"signed by {public_key}"


def plainly_sealed(provider_key: str, text: str) -> Sealed:
    return Sealed(provider_key, text)


class _Switchboard(Switchboard):
    """Tells whoever asked which request is theirs."""

    def open(self, request_id: UUID, key_id: str = "") -> Inbox:
        mine = opened.get()
        if mine is not None:
            mine.append(request_id)
        return super().open(request_id, key_id)


class _Jobs(SchedulerJobs):
    """Shows what is asked of schedulers."""

    def __init__(self, market: Market, publisher: SimulatedPublisher, writer: Any) -> None:
        super().__init__(publisher, writer, fee_percent=rules.FEE_PERCENT)
        self._market = market

    async def send(self, job: Job) -> None:
        if isinstance(job, DispatchJob):
            self._market.checks.asked_for(job)
        await super().send(job)


class SimulatedGateway:
    """``app`` is what handlers find under ``request.app``."""

    def __init__(self, market: Market, name: str, *, clock_skew_seconds: float) -> None:
        self.process = Process(name, clock_skew_seconds=clock_skew_seconds)
        self.name = name
        self._market = market
        door = DatabaseDoor(market.network, self.process)
        pool = cast("Any", AsyncMemoryPool(market.tables, door))
        writer = cast("Any", SimulatedWriter(market.log, door))
        publisher = SimulatedPublisher(market.queues, market.network, self.process)
        self.lease = GatewayLease(
            pool,
            f"http://{name}",
            seconds=rules.LEASE_SECONDS,
            renew_seconds=rules.LEASE_RENEW_SECONDS,
            on_lost=self._suspend,
            on_renamed=self._resume,
        )
        relay = GatewayRelay(
            pool, SECRET, transport=SimulatedTransport(market.network, self.process, market.gateway_at)
        )
        fleet = GatewayFleet(
            pool,
            lambda: self.lease.gateway_id,
            policy=rules.POLICY,
            size_of=rules.CATALOG.size_of,
            relayed=True,
        )
        nothing = cast("Any", None)  # these parts are asked by requests that nobody makes here
        self.switchboard = _Switchboard()
        self.coordinator = Coordinator(
            ledger=writer,
            books=nothing,
            transparency=nothing,
            credentials=Doorkeeper(market.credentials),
            keys=nothing,
            replies=nothing,
            sealed_requests=nothing,
            files=nothing,
            batches=nothing,
            rate_limits=RateLimits(Defaults()),
            jobs=_Jobs(market, publisher, writer),
            fleet=fleet,
            sealing=PlainSealing(),
            gateway=self.lease,
            catalog=rules.CATALOG,
            policy=rules.POLICY,
            timeouts=rules.TIMEOUTS,
            hedging=rules.hedging(on=market.hedges),
            settings=rules.LIMITS,
            switchboard=self.switchboard,
            internal_secret=SECRET,
            relay=relay,
        )
        self.app = SimpleNamespace(state=SimpleNamespace(coordinator=self.coordinator))
        self._connections: dict[Connection, None] = {}
        self._hurry = asyncio.Event()
        self.open = False

    def start(self) -> None:
        self.process.start(self._run())

    async def _run(self) -> None:
        while True:
            try:
                await self.lease.take(self.lease.gateway_id)
                break
            except (psycopg.Error, PoolTimeout):
                await asyncio.sleep(0.5)
        self.open = True
        self._market.trace(self.name, "is open")
        await asyncio.gather(self.lease.keep(), self.coordinator.keep_fleet())

    def _suspend(self) -> None:
        self._market.trace(self.name, "lost its lease")
        self._market.excuses.add("lease lost")
        self.coordinator.suspend()

    async def _resume(self) -> None:
        self._market.trace(self.name, f"goes on as {self.lease.gateway_id}")
        await self.coordinator.resume()

    async def drain(self) -> None:
        """Stop in order."""
        self.open = False
        await self.coordinator.drain(DRAIN_SECONDS, self._hurry)
        with suppress(psycopg.Error, PoolTimeout):
            await self.lease.end()

    def kill(self) -> None:
        self.open = False
        self.process.kill()
        for connection in list(self._connections):
            connection.close(1006)

    def connect(self, connection: Connection) -> None:
        """A machine connects."""
        self._connections[connection] = None
        serving = self.process.start(self._serve_machine(connection))
        serving.add_done_callback(lambda _: self._connections.pop(connection, None))

    async def _serve_machine(self, connection: Connection) -> None:
        socket = GatewaySocket(connection, self.process, self.app)
        await provider_socket(cast("Any", socket))
        connection.close(connection.close_code, connection.close_reason)

    def hear(self, notice: Notice) -> bool:
        """A scheduler's notice; whether somebody waits for it."""
        self._market.trace(self.name, f"hears {type(notice).__name__} for {notice.request_id}/{notice.attempt}")
        return self.switchboard.hand_over(notice)

    def hear_of_revocation(self, key_id: str) -> None:
        if self.process.alive:
            self.switchboard.revoke(key_id)


class SimulatedMailbox:
    """A scheduler's way to the gateways, in the place of internal HTTP."""

    def __init__(self, market: Market, process: Process, pool: MemoryPool) -> None:
        self._market = market
        self._process = process
        self._pool = pool

    def deliver(self, gateway_id: UUID, notice: Notice) -> None:
        with self._pool.connection() as connection:
            row = connection.execute(sql.GATEWAY_URL, (gateway_id,)).fetchone()
        if row is None:
            raise GatewayUnreachable(GatewayUnreachable.__doc__)
        name = row[0].removeprefix("http://")
        try:
            wait_for(self._market.network.travel(self._process, name))
        except ConnectionError as error:
            raise GatewayUnreachable(str(error)) from None
        gateway = self._market.gateway_at(name)
        if gateway is None or not gateway.process.alive or not gateway.hear(notice):
            raise GatewayUnreachable("nobody waits for the notice there")


class SimulatedScheduler:
    """A scheduler process: worker threads, and the clock that sends the sweeper on its way."""

    def __init__(self, market: Market, name: str, *, clock_skew_seconds: float) -> None:
        self.process = Process(name, clock_skew_seconds=clock_skew_seconds)
        self._market = market
        door = DatabaseDoor(market.network, self.process)
        pool = MemoryPool(market.tables, door)
        self._broker = SimulatedBroker(market.queues, self.process)
        self.scheduler = Scheduler(
            writer=cast("Any", SimulatedWriter(market.log, door)),
            pool=cast("Any", pool),
            mailbox=SimulatedMailbox(market, self.process, pool),
            policy=rules.POLICY,
            resend=self._resend,
            fee_percent=rules.FEE_PERCENT,
            queue_depth_max=rules.QUEUE_DEPTH_MAX,
            claim_seconds=rules.HOLD_SECONDS,
            lease_grace_seconds=rules.LEASE_GRACE_SECONDS,
            random=Random(market.chance.random()),
            relayed=True,
        )
        register(self._broker, self.scheduler)

    def start(self) -> None:
        for _ in range(rules.SCHEDULER_THREADS):
            self.process.start(self._broker.work())
        self.process.start(self._tick())

    def kill(self) -> None:
        self.process.kill()
        self._market.queues.take_back(self.process)

    async def _tick(self) -> None:
        while True:
            self._broker.enqueue(sweep_message())
            calm = self._market.is_calm
            await asyncio.sleep(rules.SWEEP_SECONDS_CALM if calm else rules.SWEEP_SECONDS)

    def _resend(self, job: DispatchJob) -> None:
        self._broker.enqueue(message_of(job))
