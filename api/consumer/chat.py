"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.consumer.admission import admit_command, bounds_of
from api.consumer.answers import Whole
from api.consumer.attempt import Delta, Started
from api.consumer.auth import authenticate
from api.consumer.body import read_json_object
from api.consumer.chat_rendering import KEEP_ALIVE, ChatStream, completion_body, proofs_of
from api.consumer.chat_request import ChatRequest, body_for_machine, parse_chat
from api.consumer.inference import Consumed, Finished, Inference
from api.coordinator import Coordinator
from api.errors import error_response
from domain.catalog import CatalogModel
from domain.dispatch import ReleaseJob
from domain.errors import DarkbloomError, LedgerUnavailable, ModelNotFound, ServiceUnavailable

log = logging.getLogger(__name__)

router = APIRouter()

WRITE_SECONDS_MAX = 30.0
"""A consumer that does not read for this long is treated as gone."""


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    began = time.perf_counter()
    coordinator: Coordinator = request.app.state.coordinator
    coordinator.require_open()
    caller = await authenticate(request.headers, coordinator.credentials)
    body = await read_json_object(request, coordinator.settings.inference_body_bytes_max)
    chat = parse_chat(body)
    model = await _model_of(chat, coordinator)
    bounds = bounds_of(chat, model)
    timing_us = {"parse_us": int((time.perf_counter() - began) * 1_000_000)}

    request_id = uuid4()
    began = time.perf_counter()
    command = admit_command(
        request_id=request_id,
        caller=caller,
        gateway_id=coordinator.gateway_id,
        model=model,
        bounds=bounds,
        minimum_charge_micro_usd=coordinator.settings.minimum_charge_micro_usd,
        expires_at=datetime.now(UTC) + timedelta(seconds=coordinator.settings.hold_seconds),
    )
    machine_body = body_for_machine(chat, bounds.output_bound)
    try:
        await coordinator.ledger.run(command)
        coordinator.require_open()
    except (LedgerUnavailable, ServiceUnavailable, asyncio.CancelledError):
        # Nobody may know whether the hold was placed, or nobody here can go on with it; if it was placed, it goes.
        coordinator.end_later(ReleaseJob(request_id=request_id, account_id=caller.account_id, reason="failed"))
        raise
    timing_us["reserve_us"] = int((time.perf_counter() - began) * 1_000_000)

    inference = Inference(
        request_id=request_id,
        account_id=caller.account_id,
        model=model.id,
        size_gb=model.size_gb,
        bounds=bounds,
        stop_bytes=chat.stop_bytes,
        stream=chat.stream,
        body=machine_body,
        inbox=coordinator.switchboard.open(request_id),
        tools=coordinator.tools,
        timing_us=timing_us,
    )
    return ChatResponse(inference, chat, coordinator)


async def _model_of(chat: ChatRequest, coordinator: Coordinator) -> CatalogModel:
    found = coordinator.catalog.get(chat.model)
    if found is not None:
        return found
    if coordinator.catalog.open_to_unlisted and chat.model.isprintable():
        for machine in await coordinator.fleet.offers(chat.model):
            return coordinator.catalog.unlisted(chat.model, machine.context_lengths.get(chat.model, 0))
    raise ModelNotFound(param="model")


class ChatResponse(Response):
    """Serves an admitted request while it watches the connection.

    The status goes out with the first content, so everything that fails before is a plain JSON error.
    """

    def __init__(self, inference: Inference, chat: ChatRequest, coordinator: Coordinator) -> None:
        super().__init__()
        self._inference = inference
        self._chat = chat
        self._coordinator = coordinator
        self._created = int(time.time())
        self._committed = False
        self._unreachable = False
        self._last_write = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        beat: asyncio.Task[None] | None = None
        try:
            if self._chat.stream:
                beat = asyncio.create_task(self._keep_alive(send))
                await self._stream(send)
            else:
                await self._answer(scope, receive, send)
        except Consumed:
            log.info("request %s: the consumer hung up", self._inference.request_id)
        except DarkbloomError as error:
            log.info("request %s failed: %s", self._inference.request_id, error.type)
            if self._committed:
                await self._write(send, ChatStream.error(error), last=True)
            else:
                await error_response(error)(scope, receive, send)
        finally:
            watch.cancel()
            if beat is not None:
                beat.cancel()
            self._coordinator.switchboard.close(self._inference.request_id)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._inference.consumer_gone()

    async def _keep_alive(self, send: Send) -> None:
        seconds = self._coordinator.keep_alive_seconds
        while True:
            quiet = time.monotonic() - self._last_write
            if self._committed and quiet >= seconds:
                await self._write(send, KEEP_ALIVE)
                quiet = 0.0
            await asyncio.sleep(max(0.05, seconds - quiet))

    async def _stream(self, send: Send) -> None:
        chat = self._chat
        stream = ChatStream(model=chat.model, created=self._created, include_usage=chat.include_usage)
        async with aclosing(self._inference.events()) as events:
            async for event in events:
                match event:
                    case Started():
                        await self._start_stream(send, event)
                        await self._write(send, stream.start(event))
                    case Delta() if rendered := stream.delta(event.chunk.choices):
                        await self._write(send, rendered)
                    case Finished():
                        await self._write(send, stream.finish(event), last=True)

    async def _start_stream(self, send: Send, started: Started) -> None:
        headers = trust_headers(started) | {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "connection": "keep-alive",
            "x-accel-buffering": "no",
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._committed = True
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": raw})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: Started | None = None
        whole = Whole(choices=())
        async with aclosing(self._inference.events()) as events:
            async for event in events:
                match event:
                    case Started():
                        started = event
                    case Whole():
                        whole = event
                    case Finished() if started is not None:
                        body = completion_body(
                            started=started,
                            whole=whole,
                            finished=event,
                            model=self._chat.model,
                            created=self._created,
                        )
                        proofs = proofs_of(event)
                        headers = trust_headers(started)
                        if proofs:
                            headers["X-SE-Signature"] = proofs["se_signature"]
                            headers["X-Response-Hash"] = proofs["response_hash"]
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
            self._inference.consumer_gone()


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
