"""Keeps the machine connected: when to try again, and when to give up (provider agent, section 8.4)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from agent.errors import AgentStopping, AlreadyRunning
from agent.log import printable
from agent.machine import Machine
from agent.session import Session
from agent.shutdown import Shutdown
from agent.version import agent_version
from domain import protocol

_log = logging.getLogger(__name__)

_CLEAN_CLOSES = (1000, 1001, 1012)
_POLICY_CLOSE = 1008
_POLICY_STATUSES = (401, 403)
_REPLACED_REASON = "replaced by new connection from same device"
_INBOUND_FRAMES_MAX = 4
_CLOSE_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Delays in seconds between connections. ``halved_by`` is how long a connection has to hold to halve the ceiling of
    the next one, so a minute takes the longest back to the first."""

    first: float = 1.0
    longest: float = 60.0
    halved_by: float = 10.0
    refused: float = 300.0


class Backoff:
    """Full jitter below a ceiling that doubles with each failure."""

    def __init__(self, policy: RetryPolicy, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._policy = policy
        self._draw = draw
        self._ceiling = policy.first

    def reset(self) -> None:
        self._ceiling = self._policy.first

    def held(self, seconds: float) -> None:
        """Forget so much of earlier trouble as a connection that held so long disproves."""
        self._ceiling = max(self._policy.first, self._ceiling * 0.5 ** (seconds / self._policy.halved_by))

    def about_first(self) -> float:
        """Seconds to wait after a close in order, spread so that not all machines of a gateway come back at once."""
        return self._draw(0.5 * self._policy.first, 1.5 * self._policy.first)

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, self._policy.longest)
        return self._draw(0.0, ceiling)


class Link:
    """Connects, runs a session, and connects again until the agent drains."""

    def __init__(
        self,
        machine: Machine,
        shutdown: Shutdown,
        url: str,
        address: str,
        *,
        policy: RetryPolicy | None = None,
        once: bool = False,
    ) -> None:
        """``url`` is the socket's; ``address`` is what may be logged of it."""
        self._machine = machine
        self._shutdown = shutdown
        self._url = url
        self._address = address
        self._policy = policy or RetryPolicy()
        self._backoff = Backoff(self._policy)
        self._once = once

    async def run(self) -> None:
        """Stay connected until a drain is complete.

        Raises:
            AlreadyRunning: the coordinator dropped this connection for a newer one of the same machine.
        """
        while not self._shutdown.drain.is_set():
            try:
                delay_seconds = await self._connect_and_serve()
                await self._shutdown.unless_draining(asyncio.sleep(delay_seconds))
            except AgentStopping:
                return

    async def _connect_and_serve(self) -> float:
        """One connection; returns the seconds to wait before the next."""
        try:
            socket = await self._shutdown.unless_draining(self._connect())
        except InvalidStatus as error:
            status = error.response.status_code
            if status in _POLICY_STATUSES:
                return self._refused(f"HTTP status {status}")
            return self._unreachable(f"HTTP status {status}")
        except (OSError, WebSocketException) as error:
            return self._unreachable(printable(str(error)) or type(error).__name__)
        began = time.monotonic()
        try:
            session = Session(self._machine, self._shutdown, self._address, once=self._once)
            await session.run(socket)
        finally:
            await socket.close()
        self._backoff.held(time.monotonic() - began)
        return self._after_close(socket)

    async def _connect(self) -> ClientConnection:
        return await connect(
            self._url,
            user_agent_header=f"darkbloom/{agent_version()}",
            # Sealed bytes do not compress.
            compression=None,
            ping_interval=protocol.PING_INTERVAL_SECONDS,
            ping_timeout=protocol.PONG_TIMEOUT_SECONDS,
            close_timeout=_CLOSE_SECONDS_MAX,
            max_size=protocol.PROVIDER_INBOUND_BYTES_MAX,
            max_queue=_INBOUND_FRAMES_MAX,
        )

    def _after_close(self, socket: ClientConnection) -> float:
        if self._shutdown.drain.is_set():
            return 0.0
        code, reason = socket.close_code, printable(socket.close_reason or "")
        by_coordinator = socket.protocol.close_rcvd_then_sent
        if by_coordinator and reason == _REPLACED_REASON:
            raise AlreadyRunning(
                f"{self._address} dropped this connection for a newer one of the same machine. Another agent runs with "
                "this machine's identity; stop one of them."
            )
        if by_coordinator and code == _POLICY_CLOSE:
            return self._refused(reason or "no reason given")
        if by_coordinator and code in _CLEAN_CLOSES:
            self._backoff.reset()
            _log.info("%s closed the connection (%s%s)", self._address, code, f", {reason}" if reason else "")
            return self._backoff.about_first()
        return self._unreachable(f"connection lost ({code}{f', {reason}' if reason else ''})")

    def _refused(self, reason: str) -> float:
        _log.error("%s refused this machine: %s; trying again in %.0f s", self._address, reason, self._policy.refused)
        return self._policy.refused

    def _unreachable(self, reason: str) -> float:
        delay_seconds = self._backoff.next()
        _log.warning("no connection to %s: %s; trying again in %.1f s", self._address, reason, delay_seconds)
        return delay_seconds
