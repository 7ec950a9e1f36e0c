"""Serves an admitted request over HTTP: a stream or a whole answer, in the dialect of its renderer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol
from uuid import UUID

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.consumer.answers import Whole
from api.consumer.attempt import Delta, Started
from api.consumer.idempotency import Recording
from api.consumer.inference import Consumed, Event, Finished
from api.consumer.rendering import Call, proofs_of
from api.coordinator import Coordinator
from api.errors import error_response
from domain.errors import DarkbloomError

log = logging.getLogger(__name__)

WRITE_SECONDS_MAX = 30.0
"""A consumer that does not read for this long is treated as gone."""


class Answering(Protocol):
    """An admitted request, or several that are one answer."""

    @property
    def request_ids(self) -> tuple[UUID, ...]: ...

    @property
    def tokens_used(self) -> int: ...

    def consumer_gone(self) -> None: ...

    def events(self) -> AsyncGenerator[Event, None]: ...


class AnswerResponse(Response):
    """Serves an admitted request while it watches the connection.

    The status goes out with the first content, so everything that fails before is a plain JSON error.
    """

    def __init__(
        self,
        answering: Answering,
        call: Call,
        coordinator: Coordinator,
        recording: Recording,
        on_used: Callable[[int], None],
    ) -> None:
        """``on_used`` is told the tokens that were used, when the request has ended."""
        super().__init__()
        self._recording = recording
        self._on_used: Callable[[int], None] | None = on_used
        self._answering = answering
        self._renderer = call.renderer
        self._is_stream = call.chats[0].expected.stream
        self._coordinator = coordinator
        self._committed = False
        self._unreachable = False
        self._last_write = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        beat: asyncio.Task[None] | None = None
        try:
            if self._is_stream:
                beat = asyncio.create_task(self._keep_alive(send))
                await self._stream(send)
            else:
                await self._answer(scope, receive, send)
        except Consumed:
            log.info("request %s: the consumer hung up", self._request_id)
        except DarkbloomError as error:
            log.info("request %s failed: %s", self._request_id, error.type)
            self._end()
            if self._committed:
                await self._write(send, self._renderer.error(error), last=True)
            else:
                await error_response(error, scope)(scope, receive, send)
        finally:
            watch.cancel()
            if beat is not None:
                beat.cancel()
            for request_id in self._answering.request_ids:
                self._coordinator.switchboard.close(request_id)
            self._end()

    @property
    def _request_id(self) -> UUID:
        return self._answering.request_ids[0]

    def _end(self) -> None:
        """What the consumer's next request depends on, so it comes before the last bytes of this answer."""
        self._recording.give_up()
        if self._on_used is not None:
            self._on_used(self._answering.tokens_used)
        self._on_used = None

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._answering.consumer_gone()

    async def _keep_alive(self, send: Send) -> None:
        seconds = self._coordinator.keep_alive_seconds
        while True:
            quiet = time.monotonic() - self._last_write
            if self._committed and quiet >= seconds:
                await self._write(send, self._renderer.keep_alive)
                quiet = 0.0
            await asyncio.sleep(max(0.05, seconds - quiet))

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._answering.events()) as events:
            async for event in events:
                match event:
                    case Started():
                        await self._start_stream(send, event)
                        await self._relay(send, self._renderer.start(event))
                    case Delta():
                        await self._relay(send, self._renderer.delta(event.chunk.choices))
                    case Finished():
                        rendered = self._renderer.finish(event)
                        await self._keep(rendered)
                        await self._write(send, rendered, last=True)

    async def _relay(self, send: Send, rendered: bytes) -> None:
        if rendered:
            self._recording.add(rendered)
            await self._write(send, rendered)

    async def _keep(self, rendered: bytes) -> None:
        """Keep the answer as soon as it is paid for, so that nobody pays again whose connection breaks at its end."""
        self._recording.add(rendered)
        try:
            await self._recording.keep()
        except DarkbloomError as error:
            log.warning("the answer to request %s is not kept: %s", self._request_id, error.type)
        self._end()

    async def _start_stream(self, send: Send, started: Started) -> None:
        headers = trust_headers(started) | {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "connection": "keep-alive",
            "x-accel-buffering": "no",
        }
        self._recording.begin(headers)
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._committed = True
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": raw})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: Started | None = None
        whole = Whole(choices=())
        async with aclosing(self._answering.events()) as events:
            async for event in events:
                match event:
                    case Started():
                        started = event
                    case Whole():
                        whole = event
                    case Finished() if started is not None:
                        body = self._renderer.whole(started, whole, event)
                        proofs = proofs_of(event)
                        headers = trust_headers(started)
                        if proofs:
                            headers["X-SE-Signature"] = proofs["se_signature"]
                            headers["X-Response-Hash"] = proofs["response_hash"]
                        self._recording.begin(headers | {"content-type": "application/json"})
                        await self._keep(body)
                        await Response(body, media_type="application/json", headers=headers)(scope, receive, send)

    async def _write(self, send: Send, body: bytes, *, last: bool = False) -> None:
        self._last_write = time.monotonic()
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": not last})

    async def _send(self, send: Send, message: dict[str, object]) -> None:
        if self._unreachable:
            return
        try:
            async with asyncio.timeout(WRITE_SECONDS_MAX):
                await send(message)
        except (OSError, TimeoutError):
            # What could not be written leaves a gap, so nothing may follow it.
            self._unreachable = True
            self._answering.consumer_gone()


def trust_headers(started: Started) -> dict[str, str]:
    """What is known of the machine that answers (consumer API, section 5.7). Nothing here claims more than was
    checked."""
    machine = started.machine
    headers = {
        "X-Inference-Job-ID": started.job_id,
        "X-Provider-Attested": "true" if machine.trust_level != "none" else "false",
        "X-Provider-Trust-Level": machine.trust_level,
        "X-Provider-Chip": _latin(machine.chip),
        "X-Provider-Id": machine.session_id,
        "X-Provider-Model": _latin(machine.machine_model),
        "X-Provider-Encrypted": "true",
        "X-Timing": msgspec.json.encode(started.timing_us).decode(),
    }
    if machine.signing_key:
        headers["X-Provider-Secure-Enclave"] = "true" if machine.secure_enclave else "false"
        headers["X-Attestation-Se-Public-Key"] = machine.signing_key
    return headers


def _latin(text: str) -> str:
    """A machine's own words, made safe for a header."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:100])
