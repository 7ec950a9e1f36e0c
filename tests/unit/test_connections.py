"""Requests that never begin, over real connections to a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from api import connections
from api.connections import HEAD_BYTES_MAX, BoundedHttp

SOON = 20.0


@asynccontextmanager
async def connection() -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter], None]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    config = uvicorn.Config(app, http=BoundedHttp, lifespan="off", log_config=None, access_log=False)
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedHttp(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS_MAX", 0.05)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
@pytest.mark.usefixtures("hurry")
async def test_a_request_that_does_not_begin_in_time_is_cut_off(sent: bytes) -> None:
    async with connection() as (reader, writer), asyncio.timeout(SOON):
        writer.write(sent)
        assert await reader.read() == b""


@pytest.mark.usefixtures("hurry")
async def test_the_next_request_of_a_connection_has_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connection() as (reader, writer), asyncio.timeout(SOON):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"fine" in await reader.readuntil(b"fine")
        writer.write(b"GET / HTTP/1.1\r\nHo")
        assert await reader.read() == b""


async def test_a_head_without_an_end_is_refused() -> None:
    async with connection() as (reader, writer), asyncio.timeout(SOON):
        writer.write(b"GET / HTTP/1.1\r\n")
        writer.write(b"X-Long: " + b"x" * (HEAD_BYTES_MAX + 10))
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")


async def test_a_long_body_is_no_head() -> None:
    async with connection() as (reader, writer), asyncio.timeout(SOON):
        body = b"x" * (3 * HEAD_BYTES_MAX)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert b"fine" in await reader.readuntil(b"fine")
