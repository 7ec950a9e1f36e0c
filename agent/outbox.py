"""Frames on their way out, in two lanes (provider protocol, section 13, "Two write lanes").

Control frames go first and never wait for room: heartbeats and challenge answers must not stand behind an answer's
text. Bulk frames keep their order and wait while the lane is full, so a slow line slows the jobs down instead of
filling the memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from domain import protocol

BULK_FRAMES_MAX = 32


class Outbox:
    """One connection's outgoing frames. ``pump`` must run for anything to move."""

    def __init__(self) -> None:
        self._control: deque[protocol.FromProvider] = deque()
        self._bulk: asyncio.Queue[protocol.FromProvider] = asyncio.Queue(BULK_FRAMES_MAX)
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def control(self, message: protocol.FromProvider) -> None:
        """Queue a small frame ahead of all bulk frames."""
        self._control.append(message)
        self._mark_filled()

    async def bulk(self, message: protocol.FromProvider) -> None:
        """Queue a frame behind the other bulk frames, waiting for room."""
        await self._bulk.put(message)
        self._mark_filled()

    async def flushed(self) -> None:
        """Wait until every queued frame was handed to the socket."""
        await self._empty.wait()

    async def pump(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Hand frames to ``send`` one after the other, for ever."""
        while True:
            if self._control:
                message = self._control.popleft()
            elif not self._bulk.empty():
                message = self._bulk.get_nowait()
            else:
                self._empty.set()
                self._filled.clear()
                await self._filled.wait()
                continue
            await send(protocol.encode(message))

    def _mark_filled(self) -> None:
        self._empty.clear()
        self._filled.set()
