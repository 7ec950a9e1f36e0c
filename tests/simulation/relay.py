"""The way between gateways: the product's client and endpoints, with a simulated connection between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Protocol

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from api.relay.endpoints import cancel_job, run_job, take_violation
from domain.errors import DarkbloomError
from domain.relay import JOB_PATH, JOBS_PATH, SILENCE_SECONDS_MAX, VIOLATIONS_PATH
from tests.simulation.network import Network
from tests.simulation.processes import Process

_ENDPOINTS = tuple(
    (method, compile_path(path)[0], endpoint)
    for method, path, endpoint in (
        ("POST", JOBS_PATH, run_job),
        ("DELETE", JOB_PATH, cancel_job),
        ("POST", VIOLATIONS_PATH, take_violation),
    )
)
BUFFERED_PARTS_MAX = 64


class Server(Protocol):
    """A gateway, as another one calls it."""

    process: Process
    app: SimpleNamespace


class SimulatedTransport(httpx.AsyncBaseTransport):
    """``server_of`` finds a gateway by the host of its address."""

    def __init__(self, network: Network, process: Process, server_of: Callable[[str], Server | None]) -> None:
        self._network = network
        self._process = process
        self._server_of = server_of

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        server = self._server_of(request.url.host)
        try:
            await self._network.travel(self._process, request.url.host)
        except ConnectionError as error:
            raise httpx.ConnectError(str(error)) from None
        if server is None or not server.process.alive:
            raise httpx.ConnectError("nobody listens there")
        call = _Call(self._network, self._process, server, request)
        return await call.answer()


class _Call(httpx.AsyncByteStream):
    """One request and the stream of its answer."""

    def __init__(self, network: Network, process: Process, server: Server, request: httpx.Request) -> None:
        self._network = network
        self._names = process.name, server.process.name
        self._server = server
        self._request = request
        self._asked = [{"type": "http.request", "body": request.content, "more_body": False}]
        self._hung_up = asyncio.Event()
        self._parts: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(BUFFERED_PARTS_MAX)
        self._serving = server.process.start(self._serve())
        self._serving.add_done_callback(self._served)

    async def answer(self) -> httpx.Response:
        start = await self._next()
        if start is None:
            raise httpx.RemoteProtocolError("the other gateway is gone")
        return httpx.Response(start["status"], stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            part = await self._next()
            if part is None:
                raise httpx.RemoteProtocolError("the other gateway is gone")
            more = part.get("more_body", False)
            if part.get("body"):
                yield part["body"]

    async def aclose(self) -> None:
        self._hung_up.set()
        while not self._parts.empty():
            self._parts.get_nowait()

    async def _next(self) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(SILENCE_SECONDS_MAX):
                return await self._parts.get()
        except TimeoutError:
            raise httpx.ReadTimeout("no byte for too long") from None

    async def _serve(self) -> None:
        headers = [(name.lower(), value) for name, value in self._request.headers.raw]
        scope = {
            "type": "http",
            "method": self._request.method,
            "path": self._request.url.path,
            "headers": headers,
            "query_string": b"",
            "app": self._server.app,
        }
        response = await self._respond(Request(scope, self._receive))
        await response(scope, self._receive, self._send)

    async def _respond(self, request: Request) -> Response:
        for method, pattern, endpoint in _ENDPOINTS:
            match = pattern.match(request.url.path)
            if match is not None and method == request.method:
                try:
                    return await endpoint(request, **match.groupdict())  # type: ignore[operator]
                except DarkbloomError as error:
                    return Response(status_code=error.http_status)
        return Response(status_code=404)

    async def _receive(self) -> dict[str, Any]:
        if self._asked:
            return self._asked.pop()
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._hung_up.is_set():
            raise OSError("the other gateway hung up")
        while self._network.is_cut(*self._names):
            await asyncio.sleep(1.0)
        await asyncio.sleep(self._network.delay())
        await self._parts.put(message)

    def _served(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            while self._parts.full():
                self._parts.get_nowait()
            self._parts.put_nowait(None)
