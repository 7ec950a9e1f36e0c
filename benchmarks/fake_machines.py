"""Machines that answer at once, in a process of their own: the real protocol and real sealing, and no engine.

``python -m benchmarks.fake_machines URL`` connects, prints one line when every machine may be given work, and serves
until it is ended. Machines give each running stream one token a step, as an engine that batches does, and take no step
while the socket is full.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from adapters.crypto import box
from agent.testing.software_machine import SoftwareMachine
from domain import protocol
from domain.protocol import (
    AttestationChallenge,
    BackendCapacity,
    Cancel,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceRequest,
    InferenceResponseChunk,
    Sealed,
    SessionStats,
    Slot,
    SystemMetrics,
    TrustStatus,
    Usage,
)

MODEL = "darkbloom-tiny"
HOLD_OPEN = "hold this open"
"""A prompt that is answered with one word and no end."""

CONNECTING_MAX = 50
BUSY_SHARE = 0.1
"""So many of the machines say something new with each heartbeat; the others say that they are idle, in numbers that
wander a little, as those of real machines do."""

_WORD = b'data: {"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}'
_FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
_WHOLE = b'data: {"choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}'


class _Message(msgspec.Struct):
    content: str


class _Body(msgspec.Struct):
    """What is decided on here of a request's body."""

    messages: tuple[_Message, ...]
    max_tokens: int = 16
    stream: bool = False


_body = msgspec.json.Decoder(_Body)


class _Stream:
    """A stream that runs. ``left`` counts the words that it has still to say."""

    def __init__(self, job_id: str, channel: box.SealedChannel, body: _Body) -> None:
        self.job_id = job_id
        self.channel = channel
        self.held = body.messages[-1].content == HOLD_OPEN
        self.words = self.left = 1 if self.held else body.max_tokens


class FakeMachine(asyncio.Protocol):
    """One machine's socket. ``routable`` is done when the coordinator says that it gets work."""

    def __init__(self, url: str, slots: int) -> None:
        self.routable = asyncio.get_running_loop().create_future()
        self._identity = SoftwareMachine()
        self._slots = slots
        self._web = ClientProtocol(parse_uri(url.replace("http", "ws", 1) + "/ws/provider"), max_size=2**25)
        self._streams: dict[str, _Stream] = {}
        self._transport: Any = None
        self._full = False
        self._step_is_due = False

    # --- the socket ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._web.send_request(self._web.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._web.receive_data(data)
        for event in self._web.events_received():
            if isinstance(event, Response):
                self._send([self._identity.register(MODEL)])
                self.beat("idle", 0, 0.1)
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._handle(protocol.decode_from_coordinator(bytes(event.data)))
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.routable.done():
            self.routable.set_exception(ConnectionError(f"the coordinator closed: {self._web.close_reason}"))

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._plan_a_step()

    def _send(self, messages: Iterable[protocol.FromProvider]) -> None:
        for message in messages:
            self._web.send_text(protocol.encode(message).encode())

    def _flush(self) -> None:
        if out := b"".join(self._web.data_to_send()):
            self._transport.write(out)

    # --- the protocol --------------------------------------------------------------------------------------------

    def beat(self, status: str, running: int, cpu_usage: float) -> None:
        slot = Slot(MODEL, "running", running, 0, running * 200, running * 500, self._slots)
        heartbeat = Heartbeat(
            status=status,
            stats=SessionStats(running, running * 100),
            system_metrics=SystemMetrics(memory_pressure=0.3, cpu_usage=cpu_usage),
            active_model=MODEL,
            warm_models=(MODEL,),
            backend_capacity=BackendCapacity((slot,), 8.0, 8.0, 0.5, 64.0),
        )
        self._send([heartbeat])
        self._flush()

    def _handle(self, message: protocol.FromCoordinator) -> None:
        match message:
            case AttestationChallenge():
                self._send([self._identity.answer(message)])
            case TrustStatus() if not (message.reason or self.routable.done()):
                self.routable.set_result(None)
            case InferenceRequest() if message.encrypted_body is not None:
                channel = self._identity.channel(message.encrypted_body.ephemeral_public_key)
                self._begin(message.request_id, channel, channel.open(message.encrypted_body.ciphertext))
            case Cancel() if stream := self._streams.pop(message.request_id, None):
                self._send([self._completion(stream.job_id, stream.words - stream.left)])

    def _begin(self, job_id: str, channel: box.SealedChannel, sent: bytes) -> None:
        body = _body.decode(sent)
        if body.stream:
            self._send([InferenceAccepted(job_id)])
            self._streams[job_id] = _Stream(job_id, channel, body)
            self._plan_a_step()
        else:
            self._send([InferenceAccepted(job_id), self._chunk(job_id, channel, _WHOLE), self._completion(job_id, 1)])

    def _plan_a_step(self) -> None:
        if self._streams and not (self._step_is_due or self._full):
            self._step_is_due = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._step_is_due = False
        for stream in [one for one in self._streams.values() if one.left or not one.held]:
            if stream.left:
                stream.left -= 1
                self._send([self._chunk(stream.job_id, stream.channel, _WORD)])
            else:
                del self._streams[stream.job_id]
                last = [self._chunk(stream.job_id, stream.channel, one) for one in (_FINISH, protocol.STREAM_END)]
                self._send([*last, self._completion(stream.job_id, stream.words)])
        self._flush()
        if any(not one.held or one.left for one in self._streams.values()):
            self._plan_a_step()

    def _chunk(self, job_id: str, channel: box.SealedChannel, text: bytes) -> InferenceResponseChunk:
        return InferenceResponseChunk(job_id, Sealed(self._identity.public_key, channel.seal(text)))

    def _completion(self, job_id: str, words: int) -> InferenceComplete:
        return InferenceComplete(job_id, Usage(7, words), "ab" * 32, "c2ln")


async def _connect(url: str, slots: int) -> FakeMachine:
    address, loop = urlsplit(url), asyncio.get_running_loop()
    assert address.hostname is not None
    assert address.port is not None
    _, machine = await loop.create_connection(lambda: FakeMachine(url, slots), address.hostname, address.port)
    await machine.routable
    return machine


async def _beat_for_ever(machine: FakeMachine, number: int, seconds: float, *, busy: bool) -> None:
    draw = random.Random(number)
    await asyncio.sleep(draw.random() * seconds)
    while True:
        running = draw.randint(1, 4) if busy else 0
        machine.beat("serving" if running else "idle", running, 0.1 + draw.random() * 0.05)
        await asyncio.sleep(seconds)


async def _serve(urls: list[str], machines: int, slots: int, heartbeat_seconds: float) -> None:
    room = asyncio.Semaphore(CONNECTING_MAX)

    async def joined(number: int) -> asyncio.Task[None]:
        async with room:
            machine = await _connect(urls[number % len(urls)], slots)
        busy = number % 1000 < 1000 * BUSY_SHARE
        return asyncio.create_task(_beat_for_ever(machine, number, heartbeat_seconds, busy=busy))

    beating = await asyncio.gather(*(joined(number) for number in range(machines)))
    sys.stdout.write(f"{machines} machines are routable\n")
    sys.stdout.flush()
    await asyncio.gather(*beating)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", help="the gateways, which share the machines")
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64, help="requests that each takes at once")
    parser.add_argument("--heartbeat-seconds", type=float, default=protocol.HEARTBEAT_INTERVAL_SECONDS)
    options = parser.parse_args()
    uvloop.run(_serve(options.urls, options.machines, options.slots, options.heartbeat_seconds))


if __name__ == "__main__":
    main()
