"""A coordinator in this process: accepts one agent after the other and speaks the provider protocol with it.

It checks nothing and routes nothing; it seals, opens and keeps what arrived. Every wait is bounded.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from nacl.public import PrivateKey
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from adapters.crypto.box import SealedChannel, parse_public_key, public_key_text
from domain import protocol

WAIT_SECONDS_MAX = 30.0

T = TypeVar("T")


class FakeJob:
    """One request as its sender sees it. ``outcome`` is the last message, once ``ended`` has returned."""

    def __init__(self, job_id: str, channel: SealedChannel) -> None:
        self.id = job_id
        self.accepted = asyncio.Event()
        self.chunks: list[bytes] = []
        self.outcome: protocol.InferenceComplete | protocol.InferenceError | None = None
        self._channel = channel
        self._changed = asyncio.Condition()

    async def chunk(self, number: int) -> bytes:
        """The plaintext of chunk ``number``, as soon as it is there."""
        await self._until(lambda: len(self.chunks) > number)
        return self.chunks[number]

    async def ended(self) -> protocol.InferenceComplete | protocol.InferenceError:
        """Wait for the last message."""
        await self._until(lambda: self.outcome is not None)
        assert self.outcome is not None
        return self.outcome

    async def completed(self) -> protocol.InferenceComplete:
        """Wait for the last message, which must be a completion."""
        outcome = await self.ended()
        assert isinstance(outcome, protocol.InferenceComplete), outcome
        return outcome

    async def failed(self) -> protocol.InferenceError:
        """Wait for the last message, which must be an error."""
        outcome = await self.ended()
        assert isinstance(outcome, protocol.InferenceError), outcome
        return outcome

    def payloads(self) -> list[dict[str, Any]]:
        """The JSON of all chunks but the one that ends a stream."""
        return [json.loads(chunk.removeprefix(b"data: ")) for chunk in self.chunks if chunk != protocol.STREAM_END]

    def content(self) -> str:
        """The text that a streamed answer's chunks make together."""
        return "".join(payload["choices"][0]["delta"].get("content", "") for payload in self.payloads())

    async def take(self, message: protocol.FromProvider) -> None:
        """Enter a message about this job."""
        async with self._changed:
            if isinstance(message, protocol.InferenceAccepted):
                self.accepted.set()
            elif isinstance(message, protocol.InferenceResponseChunk):
                assert message.encrypted_data is not None
                self.chunks.append(self._channel.open(message.encrypted_data.ciphertext))
            elif isinstance(message, protocol.InferenceComplete | protocol.InferenceError):
                self.outcome = message
            self._changed.notify_all()

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._changed:
            await bounded(self._changed.wait_for(reached))


class FakeConnection:
    """One agent's connection, registered."""

    _numbers = itertools.count(1)

    def __init__(self, socket: ServerConnection, register: protocol.Register, register_frame: str) -> None:
        self.socket = socket
        self.register = register
        self.register_frame = register_frame
        self.jobs: dict[str, FakeJob] = {}
        self.heartbeats: asyncio.Queue[protocol.Heartbeat] = asyncio.Queue()
        self.answers: asyncio.Queue[protocol.AttestationResponse] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def submit(self, body: dict[str, Any] | bytes, *, job_id: str | None = None) -> FakeJob:
        """Seal a body for the agent and send it."""
        job_id = job_id or f"00000000-0000-4000-8000-{next(self._numbers):012d}"
        session_key = PrivateKey.generate()
        channel = SealedChannel(session_key, parse_public_key(self.register.public_key))
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        sealed = protocol.Sealed(public_key_text(session_key), channel.seal(text))
        return await self.submit_sealed(sealed, job_id=job_id, channel=channel)

    async def submit_sealed(
        self, sealed: protocol.Sealed | None, *, job_id: str, channel: SealedChannel | None = None
    ) -> FakeJob:
        """Send a request with any body, or with none."""
        if channel is None:
            channel = SealedChannel(PrivateKey.generate(), parse_public_key(self.register.public_key))
        job = self.jobs[job_id] = FakeJob(job_id, channel)
        await self.send(protocol.InferenceRequest(job_id, sealed))
        return job

    async def send(self, message: protocol.FromCoordinator) -> None:
        await self.socket.send(protocol.encode(message))

    async def challenge(self, timestamp: str = "2026-05-01T12:00:00Z") -> protocol.AttestationResponse:
        """Challenge the agent and wait for its answer."""
        nonce = base64.b64encode(bytes(range(32))).decode()
        await self.send(protocol.AttestationChallenge(nonce, timestamp))
        return await bounded(self.answers.get())

    async def heartbeat(self) -> protocol.Heartbeat:
        """The next heartbeat that was not looked at yet."""
        return await bounded(self.heartbeats.get())

    async def close(self, code: int, reason: str = "") -> None:
        await self.socket.close(code, reason)

    async def read(self) -> None:
        """Take in what the agent sends, until the connection ends."""
        try:
            async for frame in self.socket:
                message = protocol.decode_from_provider(frame)
                if isinstance(message, protocol.Heartbeat):
                    self.heartbeats.put_nowait(message)
                elif isinstance(message, protocol.AttestationResponse):
                    self.answers.put_nowait(message)
                elif not isinstance(message, protocol.Register) and message.request_id in self.jobs:
                    await self.jobs[message.request_id].take(message)
        except ConnectionClosed:
            pass
        finally:
            self.closed.set()


class FakeCoordinator:
    """``async with FakeCoordinator() as coordinator`` listens on a free port of the loopback interface."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._connections: asyncio.Queue[FakeConnection] = asyncio.Queue()
        self.url = ""

    async def __aenter__(self) -> FakeCoordinator:
        self._server = await serve(self._handle, "127.0.0.1", 0, max_size=protocol.COORDINATOR_INBOUND_BYTES_MAX)
        port = next(iter(self._server.sockets)).getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/ws/provider"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def connection(self) -> FakeConnection:
        """The next agent that connected and registered."""
        return await bounded(self._connections.get())

    async def _handle(self, socket: ServerConnection) -> None:
        frame = await socket.recv(decode=True)
        register = protocol.decode_from_provider(frame)
        assert isinstance(register, protocol.Register), register
        connection = FakeConnection(socket, register, frame)
        self._connections.put_nowait(connection)
        await connection.read()


async def bounded(awaitable: Awaitable[T]) -> T:
    """Wait, but not for ever."""
    return await asyncio.wait_for(awaitable, WAIT_SECONDS_MAX)
