"""What lies between the processes: distance, cuts, and connections that break."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import psycopg
from starlette.websockets import WebSocketDisconnect, WebSocketState

from tests.simulation.processes import Process

R = TypeVar("R")

DATABASE = "database"
BROKER = "broker"
GIVE_UP_SECONDS = 1.0
"""After so long without an answer a connection counts as failed."""


class Network:
    """``cut`` holds pairs of names that do not hear each other."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._cut: set[frozenset[str]] = set()
        self._stalled: list[Callable[[], None]] = []

    def delay(self) -> float:
        """Seconds from one process to another: a few milliseconds, and now and then much longer."""
        seconds = self._chance.uniform(0.0002, 0.004)
        return seconds * 50 if self._chance.random() < 0.01 else seconds

    def cut(self, one: str, other: str) -> None:
        self._cut.add(frozenset((one, other)))

    def heal(self) -> None:
        """Everybody hears everybody again, also what was sent meanwhile over connections that still stand."""
        self._cut.clear()
        stalled, self._stalled = self._stalled, []
        for send in stalled:
            send()

    def is_cut(self, one: str, other: str) -> bool:
        return bool(self._cut) and frozenset((one, other)) in self._cut

    def when_healed(self, send: Callable[[], None]) -> None:
        self._stalled.append(send)

    async def travel(self, process: Process, other: str) -> None:
        """Reach another from a process. Raises ConnectionError when that fails."""
        process.check()
        if self.is_cut(process.name, other):
            await asyncio.sleep(GIVE_UP_SECONDS)
            raise ConnectionError(f"{other} does not answer")
        await asyncio.sleep(self.delay())
        process.check()
        if self.is_cut(process.name, other):
            raise ConnectionError(f"{other} does not answer")


class DatabaseDoor:
    """A process's way to the database. What was done there stays done when the answer is lost."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def reach(self, action: Callable[[], R]) -> R:
        try:
            await self._network.travel(self._process, DATABASE)
            done = action()
            await self._network.travel(self._process, DATABASE)
        except ConnectionError as error:
            raise psycopg.OperationalError(str(error)) from None
        return done


class Lane:
    """One direction of a connection: frames arrive in their order, or not at all."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network = network
        self._names = source, target
        self._loop = asyncio.get_running_loop()
        self._sent: deque[str | None] = deque()
        self._arrived: deque[str | None] = deque()
        self._due = 0.0
        self._waiting: asyncio.Future[None] | None = None
        self.ended = False

    def put(self, frame: str | None) -> None:
        """Send a frame; None is the end."""
        if self._network.is_cut(*self._names):
            self._network.when_healed(lambda: self.put(frame))
            return
        self._due = max(self._due, self._loop.now + self._network.delay())  # type: ignore[attr-defined]
        self._sent.append(frame)
        self._loop.call_at(self._due, self._arrive)

    def _arrive(self) -> None:
        frame = self._sent.popleft()  # timers of one moment have no order of their own
        if self.ended:
            return
        self.ended = frame is None
        self._arrived.append(frame)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def get(self) -> str:
        """Raises ConnectionError at the end."""
        while not self._arrived:
            self._waiting = self._loop.create_future()
            await self._waiting
        frame = self._arrived[0]
        if frame is None:
            raise ConnectionError("the connection is closed")
        return self._arrived.popleft()  # type: ignore[return-value]


class Connection:
    """A machine's connection to a gateway."""

    def __init__(self, network: Network, machine: str, gateway: str) -> None:
        self.up = Lane(network, machine, gateway)
        self.down = Lane(network, gateway, machine)
        self.close_code = 1006
        self.close_reason = ""

    def close(self, code: int = 1006, reason: str = "") -> None:
        """Both ends hear of it as far as the network lets them."""
        self.close_code, self.close_reason = code, reason
        self.up.put(None)
        self.down.put(None)


class GatewaySocket:
    """The gateway's end, in the place of Starlette's WebSocket."""

    def __init__(self, connection: Connection, process: Process, app: Any) -> None:
        self.app = app
        self.application_state = WebSocketState.CONNECTING
        self.scope: dict[str, Any] = {"extensions": {}}
        self._connection = connection
        self._process = process

    async def accept(self) -> None:
        self.application_state = WebSocketState.CONNECTED

    async def send_text(self, frame: str) -> None:
        self._process.check()
        if self._connection.up.ended:
            raise WebSocketDisconnect(1006)
        self._connection.down.put(frame)

    async def receive_text(self) -> str:
        try:
            return await self._connection.up.get()
        except ConnectionError:
            raise WebSocketDisconnect(self._connection.close_code, self._connection.close_reason) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self._process.check()
        self.application_state = WebSocketState.DISCONNECTED
        self._connection.close(code, reason)
