"""Runs the application on a bound socket until a signal, and lets open requests finish first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
import uvloop
from fastapi import FastAPI

from api.connections import BoundedHttp
from api.frames import ShortWayProtocol
from domain.protocol import COORDINATOR_INBOUND_BYTES_MAX

BACKLOG = 2048
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PortTaken(Exception):
    """The port cannot be used."""


def bind(host: str, port: int) -> socket.socket:
    """Bind before anything else starts, so that a taken port is found at once; port 0 picks a free one.

    Raises:
        PortTaken: with what to do about it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        advice = "choose another with --port, or stop what uses it"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            advice = "give --host an address of this machine, such as 127.0.0.1"
        raise PortTaken(f"cannot listen on {host} port {port} ({error.strerror}); {advice}") from None
    return bound


def serve(app: FastAPI, bound: socket.socket, *, drain_seconds: float, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second signal aborts what is still open.

    Afterwards both signals are ignored: what is left to do is bounded in time, and it records money.
    """
    config = uvicorn.Config(
        app,
        loop="none",
        http=BoundedHttp,
        ws=ShortWayProtocol,
        ws_per_message_deflate=False,  # sealed bytes do not compress
        ws_max_size=COORDINATOR_INBOUND_BYTES_MAX,
        ws_ping_interval=None,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=5,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(_Server(config), app, bound, drain_seconds, on_ready))
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


class _Server(uvicorn.Server):
    """Signals are handled here and not by uvicorn, which would cut the machines off before their jobs are done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _serve(
    server: _Server, app: FastAPI, bound: socket.socket, drain_seconds: float, on_ready: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for signum in STOP_SIGNALS:
        loop.add_signal_handler(signum, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    stopping = asyncio.create_task(stop.wait())
    while not (server.started or serving.done() or stop.is_set()):
        await asyncio.sleep(0.01)
    if server.started:
        on_ready()
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if server.started and not serving.done():
        await app.state.coordinator.drain(drain_seconds, hurry)
    server.should_exit = True
    await serving
    stopping.cancel()
