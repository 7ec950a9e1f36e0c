"""Stands for a gateway where schedulers tell it of their assignments: a server that says yes and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httptools

YES = b"HTTP/1.1 204 No Content\r\n\r\n"

STEADY_FROM = 0.25
"""The first quarter does not count: not all workers are there yet."""


class NoticeCounter:
    def __init__(self) -> None:
        self._at: list[float] = []
        self._came = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """The address to give a lease."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self._count), "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def reached(self, count: int) -> None:
        while len(self._at) < count:
            self._came.clear()
            await self._came.wait()

    def per_second(self) -> float:
        steady = self._at[int(len(self._at) * STEADY_FROM) :]
        return (len(steady) - 1) / (steady[-1] - steady[0])

    def _count(self) -> None:
        self._at.append(time.perf_counter())
        self._came.set()


class _Connection(asyncio.Protocol):
    def __init__(self, count: Any) -> None:
        self._count = count
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._count()
        self._transport.write(YES)
