"""A scripted machine: the real protocol and real sealing, and an answer that the test decides on.

It stands in for the agent where a test needs what a well-behaved agent never does, or an answer held back.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
import websockets
from cryptography.hazmat.primitives.asymmetric import ec

from adapters.crypto import box
from agent.testing.software_machine import SoftwareMachine
from domain import protocol
from domain.kinds import EMBEDDING, IMAGE, TEXT, ModelKind
from domain.protocol import (
    ENDPOINTS,
    AttestationChallenge,
    AttestationResponse,
    BackendCapacity,
    Cancel,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceRequest,
    InferenceResponseChunk,
    Register,
    Sealed,
    SessionStats,
    Slot,
    SystemMetrics,
    TrustStatus,
    Usage,
)

MODEL = "darkbloom-tiny"

Answer = Callable[["Machine", "Job"], Awaitable[None]]


class Job:
    """One sealed request, opened."""

    def __init__(self, machine: Machine, job_id: str, body: dict[str, Any], channel: box.SealedChannel) -> None:
        self.job_id = job_id
        self.body = body
        self.cancelled = asyncio.Event()
        self._machine = machine
        self._channel = channel

    async def accept(self) -> None:
        await self._machine.send(InferenceAccepted(request_id=self.job_id))

    async def chunk(self, text: str | bytes) -> None:
        plain = text.encode() if isinstance(text, str) else text
        sealed = Sealed(self._machine.public_key, self._channel.seal(plain))
        await self._machine.send(InferenceResponseChunk(request_id=self.job_id, encrypted_data=sealed))

    async def delta(self, content: str | None = None, *, finish: str | None = None, index: int = 0) -> None:
        await self.say({} if content is None else {"content": content}, finish=finish, index=index)

    async def say(self, delta: dict[str, Any], *, finish: str | None = None, index: int = 0, **more: Any) -> None:
        """A chunk of a stream with one choice. ``more`` are members beside its delta."""
        choice = {"index": index, "delta": delta, "finish_reason": finish} | more
        await self.chunk("data: " + json.dumps({"choices": [choice]}))

    async def whole(self, *choices: dict[str, Any]) -> None:
        """An answer in one piece: the members of each choice but for its index."""
        numbered = [{"index": index, "finish_reason": "stop"} | choice for index, choice in enumerate(choices)]
        await self.chunk("data: " + json.dumps({"choices": numbered}))

    async def complete(self, prompt_tokens: int, completion_tokens: int, **details: int) -> None:
        await self._machine.send(
            InferenceComplete(
                request_id=self.job_id,
                usage=Usage(prompt_tokens, completion_tokens, **details),
                response_hash="ab" * 32,
                se_signature="c2ln",
            )
        )


async def answer_at_once(machine: Machine, job: Job, words: tuple[str, ...] = ("Hello", ", ", "world")) -> None:
    """A well-behaved answer of a few words, in the form that was asked for."""
    if job.body.get("endpoint") in ENDPOINTS.values():
        await make_at_once(job)
        return
    await job.accept()
    choices = range(job.body.get("n") or 1)
    if job.body.get("stream"):
        for index in choices:
            await job.say({"role": "assistant", "content": ""}, index=index)
            for word in words:
                await job.delta(word, index=index)
            await job.delta(finish="stop", index=index)
        await job.chunk("data: [DONE]")
    else:
        await job.whole(*({"message": {"role": "assistant", "content": "".join(words)}} for _ in choices))
    await job.complete(7, len(words) * len(choices))


async def make_at_once(job: Job) -> None:
    """Well-behaved media of the least size."""
    await job.accept()
    body = job.body
    if body["endpoint"] == ENDPOINTS[EMBEDDING]:
        vector = struct.pack(f"<{body.get('dimensions', 4)}f", 1, *[0] * (body.get("dimensions", 4) - 1))
        for index in range(len(body["input"])):
            await job.chunk(f'data: {{"index":{index},"embedding":"{base64.b64encode(vector).decode()}"}}')
        await job.complete(len(body["input"]), 0)
    elif body["endpoint"] == ENDPOINTS[IMAGE]:
        for index in range(body["n"]):
            await send_image(job, index, png(body["width"], body["height"]))
        await job.complete(0, 0, units=body["n"] * protocol.billed_pixels(body["width"], body["height"]))
    else:
        segment = {"start": 0.0, "end": 0.5, "text": "Hello"}
        said = {"text": "Hello", "duration": 0.5, "language": "english", "segments": [segment]}
        await job.chunk("data: " + json.dumps(said))
        await job.complete(0, 0, units=500)


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """What looks like a PNG of this size to whoever reads its head and its end."""
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return head + b"\x08\x02\0\0\0\0\0\0\0" + pixels + b"\0" * 12 + b"\0\0\0\0IEND\xaeB`\x82"


async def send_image(job: Job, index: int, content: bytes, part_bytes: int = 512 * 1024) -> None:
    await job.chunk(f'data: {{"index":{index},"bytes":{len(content)}}}')
    for at in range(0, len(content), part_bytes):
        await job.chunk(content[at : at + part_bytes])


class Machine:
    """A connected machine. ``jobs`` collects what it was asked, ``status`` the coordinator's last verdict."""

    def __init__(
        self,
        url: str,
        answer: Answer = answer_at_once,
        *,
        concurrency: int = 4,
        model: str = MODEL,
        kind: ModelKind = TEXT,
        signing_key: ec.EllipticCurvePrivateKey | None = None,
        auth_token: str = "",
        private_only: bool = False,
        genuine: bool = False,
    ) -> None:
        self._url = url.replace("http", "ws", 1) + "/ws/provider"
        self._answer = answer
        self._concurrency = concurrency
        self._model = model
        self._kind = kind
        self._software = SoftwareMachine(signing_key)
        self._auth_token = auth_token
        self._private_only = private_only
        self._genuine = genuine
        self.signing_key = self._software.signing_key
        self.public_key = self._software.public_key
        self.jobs: dict[str, Job] = {}
        self.status: TrustStatus | None = None
        self.routable = asyncio.Event()
        self.closed = asyncio.Event()
        self.close_reason = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[Machine, None]:
        """Registered and routable inside of the context, for its owner at least."""
        async with websockets.connect(self._url, max_size=protocol.PROVIDER_INBOUND_BYTES_MAX) as self._socket:
            await self.send(self._register())
            await self.heartbeat()
            receiving = asyncio.create_task(self._receive())
            try:
                async with asyncio.timeout(20):
                    await self.routable.wait()
                yield self
            finally:
                receiving.cancel()
                for task in self._tasks:
                    task.cancel()

    async def send(self, message: protocol.FromProvider) -> None:
        await self._socket.send(protocol.encode(message))

    async def send_raw(self, frame: str) -> None:
        await self._socket.send(frame)

    async def drop(self) -> None:
        """Vanish without a close frame."""
        self._socket.transport.abort()

    async def heartbeat(self, status: str = "idle") -> None:
        slot = Slot(model=self._model, state="running", max_concurrency=self._concurrency)
        await self.send(
            Heartbeat(
                status=status,
                stats=SessionStats(0, 0),
                system_metrics=SystemMetrics(),
                active_model=self._model,
                backend_capacity=BackendCapacity(slots=(slot,), total_memory_gb=64.0),
            )
        )

    def _register(self) -> Register:
        return self._software.register(
            self._model,
            kind=self._kind,
            auth_token=self._auth_token,
            private_only=self._private_only,
            genuine=self._genuine,
        )

    async def _receive(self) -> None:
        try:
            async for frame in self._socket:
                await self._handle(protocol.decode_from_coordinator(frame))
        except websockets.ConnectionClosed:
            pass
        finally:
            self.close_reason = self._socket.close_reason or ""
            self.closed.set()

    async def _handle(self, message: protocol.FromCoordinator) -> None:
        match message:
            case AttestationChallenge():
                await self.send(self._answer_challenge(message))
            case TrustStatus():
                self.status = message
                causes = message.reason.split(protocol.REASON_SEPARATOR) if message.reason else []
                if all("X-Darkbloom-Route" in cause for cause in causes):
                    self.routable.set()
            case Cancel():
                if message.request_id in self.jobs:
                    self.jobs[message.request_id].cancelled.set()
            case InferenceRequest():
                assert message.encrypted_body is not None
                sealed = message.encrypted_body
                channel = self._software.channel(sealed.ephemeral_public_key)
                job = Job(self, message.request_id, msgspec.json.decode(channel.open(sealed.ciphertext)), channel)
                self.jobs[job.job_id] = job
                task = asyncio.create_task(self._run(job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            await self._answer(self, job)

    def _answer_challenge(self, challenge: AttestationChallenge) -> AttestationResponse:
        return self._software.answer(challenge)
