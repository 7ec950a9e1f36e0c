"""What a session does about a heartbeat: nothing, a line with the next tick, or an announcement at once."""

from __future__ import annotations

import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import msgspec
import pytest

from api.providers import session as sessions
from api.providers.registration import Identity
from api.providers.registry import MachineRegistry
from api.providers.session import ProviderSession, Surroundings
from domain import protocol
from domain.protocol import (
    BackendCapacity,
    FromProvider,
    Hardware,
    Heartbeat,
    InferenceAccepted,
    OfferedModel,
    Register,
    SessionStats,
    Slot,
    SystemMetrics,
)
from domain.routing import Health, Observation, Policy, Snapshot
from tests.support.race import PlainSealing

REGISTER = Register(
    hardware=Hardware(memory_gb=64, memory_bandwidth_gbs=400.0, chip_name="Apple M4"),
    models=(OfferedModel("model", 1_000, "llama", "4bit"),),
    backend="inprocess-mlx",
    public_key="key",
    encrypted_response_chunks=True,
)
IDLE = Heartbeat(
    "idle",
    SessionStats(),
    SystemMetrics(0.3, 0.1, "nominal"),
    backend_capacity=BackendCapacity((Slot("model", "running", max_concurrency=4),), 8.0, 8.0, 0.5, 64.0),
)


def changed(**changes: Any) -> Heartbeat:
    return msgspec.structs.replace(IDLE, **changes)


def running(requests: int) -> Heartbeat:
    slot = Slot("model", "running", num_running=requests, max_concurrency=4)
    return changed(backend_capacity=BackendCapacity((slot,), 8.0, 8.0, 0.5, 64.0))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


class FleetOfOne:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.announced: list[Snapshot] = []
        self.noted: list[Snapshot] = []
        self.touched: list[str] = []
        self.observed: list[Observation] = []

    def health_of(self, machine_id: str) -> Health:
        return Health()

    async def announce(self, snapshot: Snapshot, *, routable: bool, withheld: Collection[str] = ()) -> list[Any]:
        self.announced.append(snapshot)
        return []

    def note(self, snapshot: Snapshot, *, routable: bool, withheld: Collection[str] = ()) -> None:
        self.noted.append(snapshot)

    def touch(self, session_id: str) -> None:
        self.touched.append(session_id)

    def observe(self, machine_id: str, seen: Observation) -> None:
        self.observed.append(seen)


class Scene:
    """A machine that proved who it is, and whose first heartbeat was announced."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.fleet = clock, FleetOfOne()
        around = Surroundings(
            ledger=cast("Any", self),
            fleet=cast("Any", self.fleet),
            jobs=cast("Any", None),
            sealing=PlainSealing(),
            registry=MachineRegistry(),
            gateway=cast("Any", SimpleNamespace(gateway_id=uuid4())),
            policy=Policy(development=True),
            challenge_interval_seconds=300.0,
            challenge_answer_seconds=30.0,
            heartbeat_age_seconds_max=90.0,
            drained=lambda: False,
            size_of=lambda _: 1.0,
        )
        identity = Identity("machine", "key", False, "none", "")
        self.session = ProviderSession(cast("Any", None), REGISTER, identity, "", around)
        self.session.send = self.send  # type: ignore[method-assign]
        self.told: list[Any] = []

    async def send(self, message: Any) -> None:
        self.told.append(message)

    async def run(self, command: Any) -> str:
        return "account"

    async def meet(self, snapshot: Snapshot) -> None: ...

    async def begin(self) -> Scene:
        self.fleet.meet = self.meet  # type: ignore[attr-defined]
        await self.session._prove()
        await self.session._handle(IDLE)
        self.fleet.announced.clear()
        self.told.clear()
        return self

    def offer(self, message: FromProvider, *, seconds_later: float = 5.0) -> bool:
        """Whether a frame is taken at once."""
        self.clock.now += seconds_later
        return self.session.take_at_once(protocol.encode(message))

    @property
    def said(self) -> tuple[int, int, int]:
        return len(self.fleet.announced), len(self.fleet.noted), len(self.fleet.touched)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    clock = Clock()
    monkeypatch.setattr(sessions, "time", clock)
    return await Scene(clock).begin()


async def test_a_heartbeat_that_says_nothing_new_is_taken_at_once_and_forgotten(scene: Scene) -> None:
    assert scene.offer(IDLE)
    assert scene.said == (0, 0, 0)


async def test_news_is_taken_at_once_and_noted_for_the_next_tick(scene: Scene) -> None:
    assert scene.offer(running(2))
    assert scene.said == (0, 1, 0)
    assert scene.fleet.noted == [scene.session.snapshot()]
    assert scene.session.snapshot().slots["model"].num_running == 2


async def test_a_machine_that_says_nothing_new_for_half_a_minute_is_said_to_be_there(scene: Scene) -> None:
    for _ in range(12):
        assert scene.offer(IDLE)
    assert scene.said == (0, 0, 2)
    assert scene.fleet.touched == [scene.session.session_id] * 2


async def test_a_challenge_that_grew_too_old_is_seen_though_every_heartbeat_says_the_same(scene: Scene) -> None:
    scene.session._challenge_passed_at -= 1_000.0
    assert [scene.offer(IDLE) for _ in range(6)] == [True] * 5 + [False]

    await scene.session._handle(IDLE)

    assert scene.said == (1, 0, 0)
    assert "challenge" in scene.told[0].reason


@pytest.mark.parametrize(
    "urgent",
    [
        changed(status="draining"),
        changed(system_metrics=SystemMetrics(0.3, 0.1, "critical")),
        changed(backend_capacity=BackendCapacity((Slot("model", "crashed"),), 8.0, 8.0, 0.5, 64.0)),
    ],
    ids=["draining", "hot", "crashed"],
)
async def test_what_is_urgent_is_left_to_whoever_may_wait_and_changes_nothing_before(
    scene: Scene, urgent: Heartbeat
) -> None:
    before = scene.session.snapshot()
    assert not scene.offer(urgent)
    assert scene.said == (0, 0, 0)
    assert scene.session.snapshot() == before

    await scene.session._handle(urgent)

    assert scene.said == (1, 0, 0)
    assert scene.session.snapshot() != before


async def test_a_heartbeat_does_not_overtake_one_that_waits_for_the_reader(scene: Scene) -> None:
    crashed = changed(backend_capacity=BackendCapacity((Slot("model", "crashed"),), 8.0, 8.0, 0.5, 64.0))
    assert not scene.offer(crashed)
    assert not scene.offer(IDLE)

    for waiting in (crashed, IDLE):
        await scene.session._handle(waiting)
        scene.clock.now += 5.0

    assert scene.session.snapshot().slots["model"].state != "crashed"
    assert scene.offer(running(1))


async def test_heartbeats_that_come_too_fast_are_heard_and_nobody_is_told(scene: Scene) -> None:
    assert scene.offer(running(1))
    assert scene.offer(running(2), seconds_later=0.1)
    assert scene.said == (0, 1, 0)
    assert scene.session.snapshot().slots["model"].num_running == 2


async def test_other_frames_and_those_that_break_the_protocol_are_left_alone(scene: Scene) -> None:
    assert not scene.offer(InferenceAccepted("job"))
    frames = (
        '{"type":"heartbeat"',
        '{"type":"heartbeat","status":5}',
        '{"type":"heartbeats"}',
        protocol.encode(IDLE).replace('"idle"', '"' + "x" * 513 + '"'),
        "",
    )
    assert not any(map(scene.session.take_at_once, frames))
    assert scene.session.snapshot().slots["model"].num_running == 0


async def test_nothing_is_taken_at_once_after_the_end(scene: Scene) -> None:
    scene.session._leave("gone")
    assert not scene.offer(running(2))
    assert scene.said == (0, 0, 0)


async def test_every_second_of_a_connection_is_credited_once_and_in_large_pieces(scene: Scene) -> None:
    scene.fleet.observed.clear()
    for number in range(36):
        assert scene.offer(running(number % 3))
    credited = [seen.amount for seen in scene.fleet.observed]
    assert credited == [60.0] * 3


def test_the_short_way_knows_a_heartbeat_by_how_it_is_written() -> None:
    assert protocol.encode(IDLE).startswith(protocol.HEARTBEAT_BEGINS)
