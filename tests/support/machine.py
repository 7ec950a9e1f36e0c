"""A scripted machine: the real protocol and real sealing, and an answer that the test decides on.

It stands in for the agent where a test needs what a well-behaved agent never does, or an answer held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import websockets
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.public import PrivateKey

from adapters.crypto import box, signing
from domain import protocol
from domain.protocol import (
    AttestationChallenge,
    AttestationResponse,
    BackendCapacity,
    Cancel,
    Hardware,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceRequest,
    InferenceResponseChunk,
    OfferedModel,
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

    async def chunk(self, text: str) -> None:
        sealed = Sealed(self._machine.public_key, self._channel.seal(text.encode()))
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


class Machine:
    """A connected machine. ``jobs`` collects what it was asked, ``status`` the coordinator's last verdict."""

    def __init__(
        self,
        url: str,
        answer: Answer = answer_at_once,
        *,
        concurrency: int = 4,
        model: str = MODEL,
        signing_key: ec.EllipticCurvePrivateKey | None = None,
        auth_token: str = "",
    ) -> None:
        self._url = url.replace("http", "ws", 1) + "/ws/provider"
        self._answer = answer
        self._concurrency = concurrency
        self._model = model
        self._secret = PrivateKey.generate()
        self._auth_token = auth_token
        self.signing_key = signing_key or ec.generate_private_key(ec.SECP256R1())
        self.public_key = box.public_key_text(self._secret)
        self.jobs: dict[str, Job] = {}
        self.status: TrustStatus | None = None
        self.routable = asyncio.Event()
        self.closed = asyncio.Event()
        self.close_reason = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[Machine, None]:
        """Registered and routable inside of the context."""
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
        blob = msgspec.json.encode(
            {
                "encryptionPublicKey": self.public_key,
                "keyStorage": "software",
                "publicKey": signing.public_key_text(self.signing_key),
                "secureBootEnabled": False,
                "secureEnclaveAvailable": False,
                "sipEnabled": False,
                "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
        envelope = b'{"attestation":%b,"signature":"%b"}' % (blob, signing.sign(self.signing_key, blob).encode())
        return Register(
            hardware=Hardware(machine_model="Test1,1", chip_name="Test chip", memory_gb=64),
            models=(OfferedModel(self._model, 1_000_000, "llama", "none", context_length=1024),),
            backend="inprocess-mlx",
            version="0.1.0",
            public_key=self.public_key,
            encrypted_response_chunks=True,
            attestation=msgspec.Raw(envelope),
            decode_tps=100.0,
            prefill_tps=1000.0,
            auth_token=self._auth_token,
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
                if not message.reason:
                    self.routable.set()
            case Cancel():
                if message.request_id in self.jobs:
                    self.jobs[message.request_id].cancelled.set()
            case InferenceRequest():
                assert message.encrypted_body is not None
                sealed = message.encrypted_body
                channel = box.SealedChannel(self._secret, box.parse_public_key(sealed.ephemeral_public_key))
                job = Job(self, message.request_id, msgspec.json.decode(channel.open(sealed.ciphertext)), channel)
                self.jobs[job.job_id] = job
                task = asyncio.create_task(self._run(job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            await self._answer(self, job)

    def _answer_challenge(self, challenge: AttestationChallenge) -> AttestationResponse:
        answer = AttestationResponse(
            nonce=challenge.nonce, signature="", public_key=self.public_key, sip_enabled=False, rdma_disabled=True
        )
        message = protocol.challenge_message(challenge.nonce, challenge.timestamp)
        return msgspec.structs.replace(
            answer,
            signature=signing.sign(self.signing_key, message),
            status_signature=signing.sign(self.signing_key, protocol.canonical_status(answer, challenge.timestamp)),
        )
