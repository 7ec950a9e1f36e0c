"""One connected machine: its state, its jobs, its challenges (provider protocol, sections 1 to 3; attestation, 6).

Its identity is the hash of its signing key. Another connection of the same machine replaces this one only after it has
answered a challenge with that key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypedDict
from uuid import uuid4

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api.inbox import Inbox, JobEvent, MachineLost
from api.ports import Fleet, Gateway, Jobs, Ledger, Sealing
from api.providers.challenge import Breach, Strike, check_answer, new_challenge
from api.providers.heartbeats import is_news, is_urgent
from api.providers.registration import (
    BANDWIDTH_GBS_MAX,
    DECODE_TPS_MAX,
    MEMORY_GB_MAX,
    PREFILL_TPS_MAX,
    Identity,
    clamp,
    concurrency_of,
    hardware_facts,
    is_private,
    slots_of,
)
from api.providers.registry import MachineRegistry
from domain import protocol
from domain.dispatch import DispatchJob
from domain.errors import DarkbloomError
from domain.eventsourced import Actor
from domain.kinds import TEXT
from domain.ledger import CloseSession, OpenSession
from domain.protocol import (
    AttestationChallenge,
    AttestationResponse,
    FromCoordinator,
    FromProvider,
    Heartbeat,
    Register,
    SessionStats,
    TrustStatus,
)
from domain.routing import Candidate, Observation, ObservationKind, Policy, Snapshot, Standing, standing_of

log = logging.getLogger(__name__)

STRIKES_MAX = 3
COUNTED_MAX = 2**53
CONTROL_WRITE_SECONDS = 5.0
SEND_SECONDS_MAX = 10.0
HEARTBEAT_SECONDS_MIN = 1.0
"""Heartbeats that come faster are noted, but nobody is told."""

TOUCH_SECONDS = 30.0
"""A machine whose heartbeats say nothing new is said to be there this often, and looked at for what time alone
changes."""

UPTIME_SECONDS = 60.0
"""Time that a machine was there is credited in pieces of this size."""

CONNECTION_LOST = "connection lost"
REPLACED = "replaced by new connection from same device"


class Routability(TypedDict):
    routable: bool
    withheld: Collection[str]


class Surroundings(NamedTuple):
    """What every session needs of its gateway."""

    ledger: Ledger
    fleet: Fleet
    jobs: Jobs
    sealing: Sealing
    registry: MachineRegistry
    gateway: Gateway
    policy: Policy
    challenge_interval_seconds: float
    challenge_answer_seconds: float
    heartbeat_age_seconds_max: float
    drained: Callable[[], bool]
    size_of: Callable[[str], float | None]


class ProviderSession:
    def __init__(
        self, socket: WebSocket, register: Register, identity: Identity, account_id: str, around: Surroundings
    ) -> None:
        self.session_id = str(uuid4())
        self.identity = identity
        self._socket = socket
        self._register = register
        self._token_account_id = account_id
        self._account_id = ""
        self._opened = False
        self._left = False
        self._receiving: asyncio.Task[None] | None = None
        self._announcing = asyncio.Lock()
        self._around = around
        self._jobs: dict[str, Inbox] = {}
        self._heartbeat: Heartbeat | None = None
        self._told: Heartbeat | None = None
        self._told_routability: Routability | None = None
        self._touched_at = 0.0
        self._left_to_reader = 0
        """Heartbeats that wait for whoever reads the socket; a later one must not overtake them."""
        self._credited_at = 0.0
        self._first_stats: SessionStats | None = None
        self._last_heartbeat_at = time.monotonic()
        self._challenge: AttestationChallenge | None = None
        self._challenge_passed_at = 0.0
        self._strikes = 0
        self._untrusted = ""
        self._usable_key = register.public_key if around.sealing.is_key(register.public_key) else ""
        self._verdict: TrustStatus | None = None
        self._unchanging: Snapshot | None = None
        self._close_reason = CONNECTION_LOST

    # --- for the gateway (MachineLink) ---------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no job runs here."""
        return not self._jobs

    def open_job(self, job_id: str, inbox: Inbox) -> None:
        self._jobs[job_id] = inbox

    def close_job(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    async def send(self, message: FromCoordinator) -> None:
        """Raises ConnectionError when the socket is gone."""
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise ConnectionError("the machine's connection is closed")
        try:
            async with asyncio.timeout(SEND_SECONDS_MAX):
                await self._socket.send_text(protocol.encode(message))
        except TimeoutError as error:
            self._leave("the machine does not read")
            raise ConnectionError("the machine does not read") from error
        except (RuntimeError, WebSocketDisconnect, OSError) as error:
            raise ConnectionError("the machine's connection is closed") from error

    async def violated(self, what: str) -> None:
        """Untrusted until a new registration passes every check; no heartbeat lifts it."""
        if not self._untrusted:
            log.warning("machine %s is untrusted: %s", self.identity.machine_id[:12], what)
            self._untrusted = what
            await self.announce()

    # --- the connection's life -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends."""
        around = self._around
        around.registry.add(self)
        log.info("machine %s connected as session %s", self.identity.machine_id[:12], self.session_id)
        self._receiving = asyncio.create_task(self._receive())
        duties = (asyncio.create_task(self._keep_challenging()), asyncio.create_task(self._watch_heartbeats()))
        try:
            await self._receiving
        except asyncio.CancelledError:
            if not self._left:
                raise
        finally:
            for task in (self._receiving, *duties):
                task.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
            await self._end()

    async def _open(self) -> None:
        """Record the connection, once the machine has proved that it is who it says."""
        around = self._around
        self._account_id = await around.ledger.run(
            OpenSession(
                actor=Actor("provider", self.identity.machine_id),
                correlation_id=self.session_id,
                machine_id=self.identity.machine_id,
                session_id=self.session_id,
                gateway_id=str(around.gateway.gateway_id),
                provider_key=self._register.public_key,
                hardware=hardware_facts(self._register),
                models=tuple(sorted(model.id for model in self._register.models)),
                account_id=self._token_account_id,
            )
        )
        self._opened = True
        self._credited_at = time.monotonic()
        await around.fleet.meet(self.snapshot())

    async def close(self, code: int, reason: str) -> None:
        """Say why, and leave; also when the machine does not listen."""
        if not self._left:
            self._close_reason = reason
        try:
            async with asyncio.timeout(CONTROL_WRITE_SECONDS):
                await self._socket.close(code, reason)
        except (RuntimeError, WebSocketDisconnect, OSError, TimeoutError):
            log.debug("session %s could not be told that it ends", self.session_id)
        self._leave(reason)

    def _leave(self, reason: str) -> None:
        if not self._left:
            self._left = True
            self._close_reason = reason
            if self._receiving is not None:
                self._receiving.cancel()

    async def _receive(self) -> None:
        while True:
            try:
                frame = await self._socket.receive_text()
            except WebSocketDisconnect as gone:
                if gone.code in (1000, 1001) and self._close_reason == CONNECTION_LOST:
                    self._close_reason = "closed by the machine"
                return
            except (KeyError, RuntimeError):
                return
            try:
                message = protocol.decode_from_provider(frame)
            except protocol.MalformedMessage as problem:
                log.info("session %s: a frame was dropped: %s", self.session_id, problem)
                continue
            if isinstance(message, Register):
                await self.close(1008, "already registered on this connection")
                return
            await self._handle(message)

    async def _handle(self, message: FromProvider) -> None:
        match message:
            case Heartbeat():
                await self._take_heartbeat(message)
            case AttestationResponse():
                await self._check(message)
            case Register():
                raise AssertionError("a second registration ends the connection")
            case _:
                self._pass_on(message)

    def take_at_once(self, frame: str) -> bool:
        """Take a frame for which nothing has to wait, which is what nearly all heartbeats are; False leaves it to
        whoever reads the socket."""
        if not frame.startswith(protocol.HEARTBEAT_BEGINS):
            return False
        try:
            heartbeat = protocol.decode_from_provider(frame)
        except protocol.MalformedMessage:
            return False
        if not isinstance(heartbeat, Heartbeat):
            return False
        if not self._left_to_reader and self._note(heartbeat):
            return True
        self._left_to_reader += 1
        return False

    async def _take_heartbeat(self, heartbeat: Heartbeat) -> None:
        self._left_to_reader = max(0, self._left_to_reader - 1)
        if not self._note(heartbeat):
            self._hear(heartbeat)
            self._last_heartbeat_at = time.monotonic()
            await self.announce()

    def _note(self, heartbeat: Heartbeat) -> bool:
        """Take a heartbeat whose news can wait for the next tick; False when its machine must be announced at once, and
        then nothing changed."""
        before, told, now = self._heartbeat, self._told, time.monotonic()
        due = now - self._last_heartbeat_at >= HEARTBEAT_SECONDS_MIN
        if not (due or before is None or before.status != heartbeat.status):
            self._hear(heartbeat)
            return True
        if self._left or told is None or self._announcing.locked() or is_urgent(told, heartbeat):
            return False
        news = is_news(told, heartbeat)
        if news or now - self._touched_at >= TOUCH_SECONDS:
            snapshot = self._snapshot_with(heartbeat)
            standing = self._stand(snapshot)
            if self._verdict_on(snapshot, standing) != self._verdict:
                return False
            routability = _routability(standing, snapshot)
            if news or routability != self._told_routability:
                self._told, self._told_routability = heartbeat, routability
                self._around.fleet.note(snapshot, **routability)
            else:
                self._around.fleet.touch(self.session_id)
            self._touch(now)
        self._hear(heartbeat)
        self._last_heartbeat_at = now
        return True

    def _hear(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._first_stats = self._first_stats or heartbeat.stats

    def _pass_on(self, event: JobEvent) -> None:
        inbox = self._jobs.get(event.request_id)
        if inbox is not None:  # news of an abandoned attempt has no reader, and is never billed
            inbox.put(event)

    async def _watch_heartbeats(self) -> None:
        while True:
            left = self._last_heartbeat_at + self._around.heartbeat_age_seconds_max - time.monotonic()
            if left <= 0:
                log.warning("session %s sent no heartbeat and is evicted", self.session_id)
                await self.close(1001, "no heartbeat")
                return
            await asyncio.sleep(left)

    async def _end(self) -> None:
        around = self._around
        self._left = True
        around.registry.remove(self)
        for job_id, inbox in list(self._jobs.items()):
            inbox.put(MachineLost(job_id))
        served, generated = self._counted_here()
        try:
            async with self._announcing:
                await around.fleet.withdraw(self.session_id)
        except DarkbloomError as error:
            log.warning("session %s leaves the fleet with the next sweep: %s", self.session_id, type(error).__name__)
        if self._opened:
            self._observe("uptime", time.monotonic() - self._credited_at)
        if not around.registry.others_of(self):
            around.fleet.forget(self.identity.machine_id)
        try:
            if self._opened:
                await self._record_end(served, generated)
        except DarkbloomError as error:
            log.warning("the end of session %s was not recorded: %s", self.session_id, type(error).__name__)
        log.info("machine %s disconnected: %s", self.identity.machine_id[:12], self._close_reason)

    async def _record_end(self, served: int, generated: int) -> None:
        await self._around.ledger.run(
            CloseSession(
                actor=Actor("provider", self.identity.machine_id),
                correlation_id=self.session_id,
                machine_id=self.identity.machine_id,
                session_id=self.session_id,
                requests_served=served,
                tokens_generated=generated,
                reason=self._close_reason,
            )
        )

    def _counted_here(self) -> tuple[int, int]:
        """Requests and tokens of this session: the machine's counters run since its process started."""
        first, last = self._first_stats, self._heartbeat.stats if self._heartbeat else None
        if first is None or last is None:
            return 0, 0
        return (
            min(max(0, last.requests_served - first.requests_served), COUNTED_MAX),
            min(max(0, last.tokens_generated - first.tokens_generated), COUNTED_MAX),
        )

    # --- challenges ----------------------------------------------------------------------------------------------

    async def _keep_challenging(self) -> None:
        while not self._untrusted:
            self._challenge = new_challenge()
            try:
                async with asyncio.timeout(CONTROL_WRITE_SECONDS):
                    await self.send(self._challenge)
            except (ConnectionError, TimeoutError):
                await self.close(1001, "the machine does not read")
                return
            await asyncio.sleep(self._around.challenge_answer_seconds)
            if self._challenge is not None:
                self._challenge = None
                await self._strike("no answer to a challenge")
            rest = self._around.challenge_interval_seconds - self._around.challenge_answer_seconds
            await asyncio.sleep(max(0.0, rest))

    async def _check(self, answer: AttestationResponse) -> None:
        challenge = self._challenge
        if challenge is None or answer.nonce != challenge.nonce:
            return  # a replay, or too late
        self._challenge = None
        try:
            check_answer(
                challenge,
                answer,
                encryption_key=self._register.public_key,
                signing_key=self.identity.signing_key,
                sealing=self._around.sealing,
                development=self._around.policy.development,
            )
        except Strike as problem:
            await self._strike(str(problem))
        except Breach as problem:
            await self.violated(str(problem))
        else:
            self._strikes = 0
            await self._prove()

    async def _prove(self) -> None:
        """The challenge is passed: from now on this is the machine's one connection."""
        try:
            if not self._opened:
                await self._open()
        except DarkbloomError as error:
            log.warning("session %s cannot be recorded now: %s", self.session_id, type(error).__name__)
            await self.close(1013, "the coordinator cannot register machines just now; connect again")
            return
        self._challenge_passed_at = time.time()
        self._observe("challenge_passed")
        await self._replace_older()
        await self.announce()

    async def _strike(self, what: str) -> None:
        self._strikes += 1
        self._challenge_passed_at = 0.0
        self._observe("challenge_failed")
        log.warning("machine %s: %s (strike %d)", self.identity.machine_id[:12], what, self._strikes)
        if self._strikes >= STRIKES_MAX:
            await self.violated(f"{what}, {STRIKES_MAX} times in a row")
        else:
            await self.announce()

    async def _replace_older(self) -> None:
        await asyncio.gather(*(older.close(1000, REPLACED) for older in self._around.registry.others_of(self)))

    # --- what the scheduler sees ---------------------------------------------------------------------------------

    async def announce(self) -> None:
        """Make the fleet table say what is true now, and tell the machine when the verdict on it changed."""
        around = self._around
        async with self._announcing:  # in order, and never after the end
            if self._left:
                return
            self._told = self._heartbeat
            self._touch(time.monotonic())
            snapshot = self.snapshot()
            standing = self._stand(snapshot)
            self._told_routability = _routability(standing, snapshot)
            try:
                woken: Sequence[DispatchJob] = await around.fleet.announce(snapshot, **self._told_routability)
                for job in woken:
                    await around.jobs.send(job)
            except DarkbloomError as error:
                self._told = None
                log.warning("session %s was not announced: %s", self.session_id, type(error).__name__)
            verdict = self._verdict_on(snapshot, standing)
            if verdict != self._verdict:
                await self._tell(verdict)

    def _touch(self, now: float) -> None:
        self._touched_at = now
        if self._opened and now - self._credited_at >= UPTIME_SECONDS:
            self._observe("uptime", now - self._credited_at)
            self._credited_at = now

    def _observe(self, kind: ObservationKind, amount: float = 0.0) -> None:
        self._around.fleet.observe(self.identity.machine_id, Observation(kind, time.time(), amount))

    def _stand(self, snapshot: Snapshot) -> Standing:
        """The verdict apart from any one request: a machine that is merely full is fine."""
        around = self._around
        candidate = Candidate(snapshot, health=around.fleet.health_of(snapshot.machine_id))
        return standing_of(candidate, around.policy, now=time.time(), size_of=around.size_of)

    def _verdict_on(self, snapshot: Snapshot, standing: Standing) -> TrustStatus:
        status = "untrusted" if self._untrusted else "draining" if snapshot.draining else "online"
        causes = [*standing.advice(), *filter(None, (self._untrusted,))]
        reason = protocol.REASON_SEPARATOR.join(causes)
        return TrustStatus(trust_level=snapshot.trust_level, status=status, reason=reason)

    async def _tell(self, verdict: TrustStatus) -> None:
        try:
            async with asyncio.timeout(CONTROL_WRITE_SECONDS):
                await self.send(verdict)
            self._verdict = verdict
        except (ConnectionError, TimeoutError):
            log.debug("session %s could not be told its status", self.session_id)

    def snapshot(self) -> Snapshot:
        return self._snapshot_with(self._heartbeat)

    def _snapshot_with(self, heartbeat: Heartbeat | None) -> Snapshot:
        """What is known of the machine, if this is its latest heartbeat."""
        if self._unchanging is None:
            self._unchanging = self._registered()
        register = self._register
        metrics = heartbeat.system_metrics if heartbeat else protocol.SystemMetrics()
        capacity = heartbeat.backend_capacity if heartbeat else None
        return msgspec.structs.replace(
            self._unchanging,
            gateway_id=str(self._around.gateway.gateway_id),
            account_id=self._account_id,
            untrusted=bool(self._untrusted),
            draining=self._around.drained() or (heartbeat is not None and heartbeat.status == "draining"),
            challenge_passed_at=self._challenge_passed_at,
            capacity=concurrency_of(register, heartbeat),
            slots=slots_of(capacity),
            memory_pressure=clamp(metrics.memory_pressure, 1.0),
            cpu_usage=clamp(metrics.cpu_usage, 1.0),
            thermal_state=metrics.thermal_state,
            gpu_memory_active_gb=clamp(capacity.gpu_memory_active_gb if capacity else 0.0, MEMORY_GB_MAX),
            total_memory_gb=clamp(
                (capacity.total_memory_gb if capacity else 0.0) or register.hardware.memory_gb, MEMORY_GB_MAX
            ),
        )

    def _registered(self) -> Snapshot:
        """What the registration says, which a connection never changes; the rest is as of a machine that is idle."""
        register = self._register
        return Snapshot(
            session_id=self.session_id,
            machine_id=self.identity.machine_id,
            gateway_id="",
            account_id="",
            provider_key=self._usable_key,
            trust_level=self.identity.trust_level,
            untrusted=False,
            draining=False,
            runtime_verified=False,
            private=is_private(register, development=self._around.policy.development),
            challenge_passed_at=0.0,
            capacity=0,
            models={model.id: model.size_bytes for model in register.models},
            context_lengths={model.id: model.context_length for model in register.models},
            slots={},
            decode_tps=clamp(register.decode_tps, DECODE_TPS_MAX),
            prefill_tps=clamp(register.prefill_tps, PREFILL_TPS_MAX),
            memory_bandwidth_gbs=clamp(register.hardware.memory_bandwidth_gbs, BANDWIDTH_GBS_MAX),
            memory_pressure=0.0,
            cpu_usage=0.0,
            thermal_state="nominal",
            gpu_memory_active_gb=0.0,
            total_memory_gb=0.0,
            chip=register.hardware.chip_name[:100],
            machine_model=register.hardware.machine_model[:100],
            signing_key=self.identity.signing_key,
            secure_enclave=self.identity.secure_enclave,
            serial=self.identity.serial,
            quantization={model.id: model.quantization for model in register.models},
            kinds={model.id: model.kind for model in register.models if model.kind != TEXT},
            private_only=register.private_only,
        )


def _routability(standing: Standing, snapshot: Snapshot) -> Routability:
    """Whether somebody may be given a slot of a machine, and the models that not everybody may ask it for."""
    has_owner = bool(snapshot.account_id)
    return {
        "routable": any(standing.takes(model, of_owner=has_owner) for model in snapshot.models),
        "withheld": [model for model in snapshot.models if not standing.takes(model)],
    }
