"""A cheap HTTP client for load: keep-alive connections on asyncio protocols, parsed by llhttp, and nothing else.

It shares two cores with what it measures, so it must take little of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools
import msgspec

ANSWER_SECONDS_MAX = 60.0


class Target(NamedTuple):
    """One request, as bytes, and where it goes."""

    host: str
    port: int
    request: bytes


class RequestFailed(Exception):
    """A request was not answered with status 200."""


def post(url: str, body: object, *, key: str = "") -> Target:
    address, content = urlsplit(url), msgspec.json.encode(body)
    assert address.hostname is not None
    assert address.port is not None
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return Target(address.hostname, address.port, head.encode() + content)


class Connection(asyncio.Protocol):
    """Asks one thing at a time. ``seen`` counts the occurrences of ``counted`` in what came, ``first`` and ``last`` are
    when the first and the last of them came."""

    def __init__(self, counted: bytes = b"") -> None:
        self.seen = 0
        self.first = self.last = 0.0
        self._counted = counted
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._answered: asyncio.Future[None] | None = None
        self._began: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> None:
        """Returns at the end of the answer. Raises RequestFailed."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    async def open(self, request: bytes) -> None:
        """Ask for a stream; returns with the first of what is counted. Raises RequestFailed."""
        self._began = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await self._began

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was closed")

    def on_body(self, body: bytes) -> None:
        if self._counted and (seen := body.count(self._counted)):
            self.seen += seen
            self.last = time.perf_counter()
            self.first = self.first or self.last
            if self._began is not None and not self._began.done():
                self._began.set_result(None)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"status {status}")
        elif self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _fail(self, why: str) -> None:
        for waiting in (self._answered, self._began):
            if waiting is not None and not waiting.done():
                waiting.set_exception(RequestFailed(why))


async def connections(target: Target, count: int, counted: bytes = b"") -> list[Connection]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Connection(counted), target.host, target.port) for _ in range(count)]
    return [connection for _, connection in made]


async def requests_per_second(target: Target, clients: int, seconds: float) -> float:
    """Closed loop: each client asks again as soon as it has its answer."""
    open_connections = await connections(target, clients)
    began = time.perf_counter()
    end = began + seconds

    async def client(connection: Connection) -> int:
        answered = 0
        while time.perf_counter() < end:
            await connection.ask(target.request)
            answered += 1
        return answered

    answered = sum(await asyncio.gather(*(client(connection) for connection in open_connections)))
    took = time.perf_counter() - began
    for connection in open_connections:
        connection.close()
    return answered / took


async def latencies_ms(target: Target, rate: float, seconds: float) -> list[float]:
    """Open loop: requests begin when they are due, whether or not earlier ones were answered. From that moment on
    their time counts, so that a server that stalls is charged for everybody who would have come meanwhile."""
    idle = await connections(target, 16)
    loop = asyncio.get_running_loop()
    began = loop.time()
    took: list[float] = []

    async def one(due: float) -> None:
        connection = idle.pop() if idle else (await connections(target, 1))[0]
        await connection.ask(target.request)
        took.append(1000 * (loop.time() - due))
        idle.append(connection)

    asking = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        asking.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asking)
    for connection in idle:
        connection.close()
    return took


async def counted_per_second(target: Target, streams: int, counted: bytes) -> float:
    """So many streams at once, each to its end: occurrences a second between the first and the last of all."""
    open_connections = await connections(target, streams, counted)
    await asyncio.gather(*(connection.ask(target.request) for connection in open_connections))
    began, ended = (
        min(connection.first for connection in open_connections),
        max(connection.last for connection in open_connections),
    )
    for connection in open_connections:
        connection.close()
    return sum(connection.seen for connection in open_connections) / (ended - began)


async def hold_open(target: Target, streams: int, counted: bytes, at_once: int = 50) -> Sequence[Connection]:
    """Open streams that do not end; the caller closes them."""
    held: list[Connection] = []
    while len(held) < streams:
        more = await connections(target, min(at_once, streams - len(held)), counted)
        await asyncio.gather(*(connection.open(target.request) for connection in more))
        held += more
    return held
