"""A Mac with an agent: it registers, answers challenges, beats its heart and does its jobs, unless it is in a mood."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Literal

import msgspec

from domain import protocol
from domain.protocol import (
    STREAM_END,
    AttestationChallenge,
    AttestationResponse,
    BackendCapacity,
    Cancel,
    Hardware,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    OfferedModel,
    Register,
    SessionStats,
    Slot,
    SystemMetrics,
    Usage,
)
from tests.simulation.gateway import plainly_sealed, signed_by
from tests.simulation.network import Connection
from tests.simulation.processes import Process

if TYPE_CHECKING:
    from tests.simulation.market import Market

HEARTBEAT_SECONDS = 5.0
RECONNECT_SECONDS = 1.0
GIVE_UP_SECONDS = 12.0
"""An agent that hears nothing from its gateway for so long connects again; pings are not simulated."""

Mood = Literal["well", "slow", "silent", "mute", "failing", "breaking", "boasting", "leaking", "frozen"]
"""``silent`` never says that it has a job, ``mute`` says that and nothing more, ``failing`` refuses at once,
``breaking`` fails in the middle of an answer, ``boasting`` claims far too many tokens, ``leaking`` does not seal,
``frozen`` is a process that was stopped."""


class Machine:
    """``models`` maps each model to the requests that its engine takes at once; ``tps`` is tokens a second. One that is
    not ``genuine`` has less trust than the network asks for."""

    def __init__(
        self,
        market: Market,
        name: str,
        *,
        account_id: str,
        models: dict[str, int],
        tps: float,
        chance: Random,
        private_only: bool = False,
        genuine: bool = True,
    ) -> None:
        self.name = name
        self.mood: Mood = "well"
        self.models = models
        self.process = Process(name)
        self.gateway_name = ""
        self.running: dict[str, asyncio.Task[None]] = {}
        self._market = market
        self.account_id = account_id
        self.private_only = private_only
        self.genuine = genuine
        self._tps = tps
        self._chance = chance
        self._key = f"key of {name}"
        self._connection: Connection | None = None
        self._thaw = asyncio.Event()
        self._thaw.set()

    @property
    def capacity(self) -> int:
        return sum(self.models.values())

    @property
    def is_for_all(self) -> bool:
        return self.genuine and not self.private_only

    def start(self) -> None:
        self.process = Process(self.name)
        self.process.start(self._live())

    def crash(self) -> None:
        """Vanish: the gateway hears of it when the network says so."""
        self.process.kill()
        self.running.clear()
        if self._connection is not None:
            self._connection.close(1006)

    def disconnect(self) -> None:
        """The connection breaks; the agent makes a new one."""
        if self._connection is not None:
            self._connection.close(1006)

    def get_into(self, mood: Mood) -> None:
        if self.mood == "leaking" and mood != "leaking":
            self.disconnect()  # whoever broke the protocol has to register again
        self.mood = mood
        if mood == "frozen":
            self._thaw.clear()
        else:
            self._thaw.set()

    # --- the connection ----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        while True:
            gateway = self._market.any_open_gateway(self._chance, self.name)
            if gateway is not None:
                self.gateway_name = gateway.name
                self._connection = Connection(self._market.network, self.name, gateway.name)
                gateway.connect(self._connection)
                beating = asyncio.create_task(self._beat(self._connection))
                try:
                    await self._receive(self._connection)
                except ConnectionError:
                    self._market.trace(self.name, "is disconnected")
                beating.cancel()
                for job in list(self.running.values()):
                    job.cancel()
                self.running.clear()
            await asyncio.sleep(RECONNECT_SECONDS * self._chance.uniform(0.5, 1.5))

    async def _receive(self, connection: Connection) -> None:
        self._send(connection, self._registration())
        self._send(connection, self._heartbeat())
        while True:
            frame = await connection.down.get()
            await self._thaw.wait()
            self._take(connection, protocol.decode_from_coordinator(frame))

    async def _beat(self, connection: Connection) -> None:
        while not connection.up.ended:
            await asyncio.sleep(HEARTBEAT_SECONDS * self._chance.uniform(0.9, 1.1))
            await self._thaw.wait()
            self._send(connection, self._heartbeat())

    def _send(self, connection: Connection, message: protocol.FromProvider) -> None:
        self.process.check()
        connection.up.put(protocol.encode(message))

    def _take(self, connection: Connection, message: protocol.FromCoordinator) -> None:
        match message:
            case AttestationChallenge():
                self._send(
                    connection,
                    AttestationResponse(
                        nonce=message.nonce,
                        signature=signed_by(self.name),
                        public_key=self._key,
                        status_signature=signed_by(self.name),
                    ),
                )
            case InferenceRequest():
                job = asyncio.create_task(self._run(connection, message))
                self.running[message.request_id] = job
                job.add_done_callback(lambda _: self.running.pop(message.request_id, None))
                self._market.checks.job_arrived(self, message.request_id)
            case Cancel():
                running = self.running.pop(message.request_id, None)
                if running is not None:
                    running.cancel()
            case _:
                pass

    def _registration(self) -> Register:
        blob = {
            "encryptionPublicKey": self._key,
            "publicKey": self.name,
            "secureBootEnabled": self.genuine,
            "secureEnclaveAvailable": self.genuine,
            "sipEnabled": self.genuine,
            "timestamp": self._market.wall_clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        envelope = {"attestation": blob, "signature": signed_by(self.name)}
        return Register(
            hardware=Hardware(machine_model="Mac16,5", chip_name="Apple M4", memory_gb=128),
            models=tuple(
                OfferedModel(model, 4 * 2**30, "llama", "8bit", context_length=8_192) for model in self.models
            ),
            backend="inprocess-mlx",
            version="0.1.0",
            public_key=self._key,
            encrypted_response_chunks=True,
            attestation=msgspec.Raw(msgspec.json.encode(envelope)),
            decode_tps=self._tps,
            prefill_tps=10 * self._tps,
            auth_token=f"token of {self.account_id}" if self.account_id else "",
            private_only=self.private_only,
        )

    def _heartbeat(self) -> Heartbeat:
        busy = len(self.running)
        first, *_ = self.models
        return Heartbeat(
            status="serving" if busy else "idle",
            stats=SessionStats(0, 0),
            system_metrics=SystemMetrics(),
            active_model=first,
            backend_capacity=BackendCapacity(
                slots=tuple(
                    Slot(model, "running", num_running=busy if model == first else 0, max_concurrency=slots)
                    for model, slots in self.models.items()
                ),
                total_memory_gb=128.0,
            ),
        )

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def _run(self, connection: Connection, request: InferenceRequest) -> None:
        job_id, mood = request.request_id, self.mood
        assert request.encrypted_body is not None
        body = msgspec.json.decode(request.encrypted_body.ciphertext)
        tokens = min(body["max_tokens"], self._chance.randint(2, 120))
        parts = 1 + min(3, tokens // 20)
        seconds = tokens / self._tps * (20.0 if mood == "slow" else 1.0) / parts
        if mood == "silent":
            await asyncio.sleep(1_000.0)
        if mood == "failing":
            self._send(connection, InferenceError(job_id, "the engine failed", 500))
            return
        self._send(connection, InferenceAccepted(job_id))
        if mood == "mute":
            await asyncio.sleep(1_000.0)
        delivered = 0
        try:
            for part in range(parts):
                await asyncio.sleep(seconds)
                await self._thaw.wait()
                if mood == "breaking" and part == parts - 1:
                    self._send(connection, InferenceError(job_id, "the engine failed", 500))
                    return
                if body.get("stream"):
                    delta = {"choices": [{"index": 0, "delta": {"content": "word " * 4}, "finish_reason": None}]}
                    self._chunk(connection, job_id, "data: " + json.dumps(delta), leak=mood == "leaking")
                    delivered = (part + 1) * tokens // parts
        except asyncio.CancelledError:
            if delivered and self.process.alive:
                self._send(connection, InferenceComplete(job_id, Usage(10, delivered)))
            raise
        if body.get("stream"):
            finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            self._chunk(connection, job_id, "data: " + json.dumps(finish))
            self._chunk(connection, job_id, STREAM_END.decode())
        else:
            message = {"role": "assistant", "content": "word " * tokens}
            whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            self._chunk(connection, job_id, "data: " + json.dumps(whole), leak=mood == "leaking")
        claimed = tokens * 1_000 if mood == "boasting" else tokens
        self._send(connection, InferenceComplete(job_id, Usage(10, claimed)))

    def _chunk(self, connection: Connection, job_id: str, text: str, *, leak: bool = False) -> None:
        if leak:
            self._send(connection, InferenceResponseChunk(job_id, data=text))
        else:
            self._send(connection, InferenceResponseChunk(job_id, plainly_sealed(self._key, text)))
