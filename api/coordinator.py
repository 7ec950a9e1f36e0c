"""One gateway: its ports, its open requests and its machines. ``bootstrap`` makes it, handlers use it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable
from typing import Literal, Protocol
from uuid import UUID

from api.consumer.attempt import MachineLink
from api.consumer.image_files import ImageFiles
from api.consumer.inference import Timeouts, Tools
from api.consumer.rate_limits import RateLimits
from api.inbox import Switchboard
from api.ports import (
    Batches,
    Books,
    Credentials,
    Files,
    Fleet,
    Gateway,
    Jobs,
    Keys,
    Ledger,
    Relay,
    Replies,
    SealedRequests,
    Sealing,
)
from api.providers.registry import MachineRegistry
from api.providers.session import ProviderSession, Surroundings
from api.public.ports import TransparencyLog
from api.relay.jobs import RelayedJobs
from api.relay.machine import RelayedMachine
from domain.catalog import Catalog
from domain.dispatch import ReleaseJob, SettleJob
from domain.errors import DarkbloomError, ServiceUnavailable
from domain.routing import Hedging, Policy, Snapshot

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
END_RETRY_SECONDS_MAX = 30.0
MOVE_AFTER_SECONDS = 1.0
"""A stopping gateway keeps its idle machines so long: a job that another gateway's consumer was just given one of them
for is still on its way."""

LATE_ENDS_SECONDS = 2.0
"""How long a stopping gateway waits for ends that it could not hand over yet; the sweeper has them otherwise."""


class Limits(Protocol):
    """The settings that the handlers read."""

    inference_body_bytes_max: int
    minimum_charge_micro_usd: int
    hold_seconds: float
    challenge_interval_seconds: float
    challenge_answer_seconds: float
    heartbeat_age_seconds_max: float


class Coordinator:
    def __init__(
        self,
        *,
        ledger: Ledger,
        books: Books,
        transparency: TransparencyLog,
        credentials: Credentials,
        keys: Keys,
        replies: Replies,
        sealed_requests: SealedRequests,
        files: Files,
        batches: Batches,
        rate_limits: RateLimits,
        jobs: Jobs,
        fleet: Fleet,
        sealing: Sealing,
        gateway: Gateway,
        catalog: Catalog,
        policy: Policy,
        timeouts: Timeouts,
        hedging: Hedging,
        settings: Limits,
        switchboard: Switchboard,
        internal_secret: str,
        relay: Relay | None,
    ) -> None:
        self.ledger = ledger
        self.books = books
        self.transparency = transparency
        self.credentials = credentials
        self.keys = keys
        self.replies = replies
        self.sealed_requests = sealed_requests
        self.files = files
        self.batches = batches
        self.rate_limits = rate_limits
        self.jobs = jobs
        self.fleet = fleet
        self.sealing = sealing
        self.catalog = catalog
        self.policy = policy
        self.settings = settings
        self.switchboard = switchboard
        self.internal_secret = internal_secret
        # Without other gateways there is no secret to share with them; machines forget a stopped gateway's prompts.
        self._salting_key = internal_secret.encode() or secrets.token_bytes(32)
        self.registry = MachineRegistry()
        self.relayed = RelayedJobs()
        self.image_files = ImageFiles()
        self.draining = False
        self.suspended = False
        self.keep_alive_seconds = KEEP_ALIVE_SECONDS
        self._gateway = gateway
        self._relay = relay
        self._late_ends: set[asyncio.Task[None]] = set()
        self.tools = Tools(
            jobs=jobs,
            fleet=fleet,
            sealing=sealing,
            machine_link=self._machine_link,
            gateway_id=lambda: self.gateway_id,
            timeouts=timeouts,
            end_later=self.end_later,
            observe=fleet.observe,
            hedging=hedging,
            unreachable=relay.unreachable if relay is not None else dict,
        )
        self.surroundings = Surroundings(
            ledger=ledger,
            fleet=fleet,
            jobs=jobs,
            sealing=sealing,
            registry=self.registry,
            gateway=gateway,
            policy=policy,
            challenge_interval_seconds=settings.challenge_interval_seconds,
            challenge_answer_seconds=settings.challenge_answer_seconds,
            heartbeat_age_seconds_max=settings.heartbeat_age_seconds_max,
            drained=lambda: self.draining,
            size_of=catalog.size_of,
        )

    @property
    def gateway_id(self) -> UUID:
        return self._gateway.gateway_id

    def cache_salt(self, account_id: str) -> str:
        """What lets a machine share cached prompts among one account's requests and with nobody else's, and does not
        tell it whose they are. Every gateway has the same."""
        return hmac.new(self._salting_key, b"cache_salt:" + account_id.encode(), hashlib.sha256).hexdigest()

    async def keep_fleet(self) -> None:
        """Write what gathered about the machines, tick by tick, until cancelled."""
        while True:
            await self.fleet.tick()
            self.image_files.forget_expired()
            try:
                flushed = await self.fleet.flush()
            except DarkbloomError as error:
                log.warning("the fleet is written with the next tick: %s", type(error).__name__)
                continue
            try:
                for job in flushed.woken:
                    await self.jobs.send(job)
            except DarkbloomError as error:
                log.warning("who was woken is woken again by the next sweep: %s", type(error).__name__)
            changed, missing = set(flushed.changed), set(flushed.missing)
            if changed or missing:
                for session in self.registry.all():
                    if session.identity.machine_id in changed or session.session_id in missing:
                        await session.announce()

    def end_later(self, job: SettleJob | ReleaseJob) -> None:
        """Hand an end to the scheduler, however often that has to be tried while this process lives."""
        task = asyncio.create_task(self._hand_over(job))
        self._late_ends.add(task)
        task.add_done_callback(self._late_ends.discard)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Take nothing new, send machines elsewhere, and let what is open finish for a while or until there is a hurry;
        then abort the rest."""
        self.draining = True
        for session in self.registry.all():
            await session.announce()
        if self._open():
            text = "stopping when %d open requests are finished, or in %.0f s; a second signal aborts them"
            log.info(text, self._open(), seconds)
        clock = asyncio.get_running_loop().time
        deadline, move_at = clock() + seconds, clock() + (MOVE_AFTER_SECONDS if self._relay is not None else 0.0)
        while (self._open() or (self.registry.all() and clock() < move_at)) and clock() < deadline:
            if hurry.is_set():
                break
            if clock() >= move_at:
                await self._send_away(session for session in self.registry.all() if session.idle)
            await asyncio.sleep(0.05)
        self.switchboard.abort_all()
        self.relayed.abort_all()
        await self._send_away(self.registry.all())
        if self._late_ends:
            await asyncio.wait(self._late_ends, timeout=LATE_ENDS_SECONDS)

    @staticmethod
    async def _send_away(sessions: Iterable[ProviderSession]) -> None:
        """To another gateway, if there is one: a machine connects again at once."""
        reason = "this gateway is stopping; connect again"
        await asyncio.gather(*(session.close(1012, reason) for session in sessions))

    def suspend(self) -> None:
        """The lease is lost, and others may already have ended what is open here: abort it and take nothing new."""
        self.suspended = True
        self.switchboard.abort_all()
        self.relayed.abort_all()

    async def resume(self) -> None:
        """Go on as a gateway of a new name."""
        self.suspended = False
        for session in self.registry.all():
            await session.announce()

    def _open(self) -> int:
        """Requests of consumers here, and jobs on machines here."""
        return len(self.switchboard) + len(self.relayed)

    @property
    def state(self) -> Literal["ready", "draining", "suspended"]:
        return "draining" if self.draining else "suspended" if self.suspended else "ready"

    def require_open(self) -> None:
        """Raises ServiceUnavailable while nothing new can be taken."""
        if self.state != "ready":
            raise ServiceUnavailable

    def require_lease(self, gateway_id: UUID) -> None:
        """The same when the lease that this gateway held under an id is over: others may have ended what was admitted
        with it."""
        self.require_open()
        if gateway_id != self.gateway_id:
            raise ServiceUnavailable

    def _machine_link(self, machine: Snapshot) -> MachineLink | None:
        session = self.registry.find(machine.session_id)
        if session is None and self._relay is not None and machine.gateway_id != str(self.gateway_id):
            return RelayedMachine(machine, self._relay)
        return session

    async def _hand_over(self, job: SettleJob | ReleaseJob) -> None:
        pause = 0.2
        while True:
            try:
                await self.jobs.send(job)
                return
            except DarkbloomError as error:
                log.warning("an end is handed over later: %s", type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, END_RETRY_SECONDS_MAX)
