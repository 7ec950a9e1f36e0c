"""Requests that the consumer sealed to this coordinator, and their sealed answers (consumer API, section 14).

A layer of ASGI around the handlers, which notice nothing: the envelope is opened when a handler reads the body, and
that is after its checks of the credential and the rate. What was answered before is plain, all that follows is sealed.
"""

from __future__ import annotations

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.consumer.body import read_body
from api.consumer.sealed_answer import SEALED_MEDIA_TYPE, SealedAnswer
from api.errors import error_response
from domain.errors import InternalError, InvalidSealedEnvelope

SEALED = "darkbloom.sealed"
"""In the ASGI scope of a sealed request."""

SEALABLE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/images/generations",
    }
)


class Envelope(msgspec.Struct, frozen=True):
    kid: str | None = None
    ephemeral_public_key: str = ""
    ciphertext: str = ""


_decoder = msgspec.json.Decoder(Envelope)


class SealedTransport:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or not _says_sealed(scope):
            await self._app(scope, receive, send)
            return
        if scope["path"] not in SEALABLE:
            refusal = InvalidSealedEnvelope("This endpoint takes no sealed requests.")
            await error_response(refusal, scope)(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(_as_plain(scope), exchange.receive, exchange.send)
        except Exception:
            # Whoever catches this outside would answer it in plain text.
            if exchange.owes_an_answer:
                await error_response(InternalError(), scope)(scope, receive, exchange.send)
            raise


class _Exchange:
    """One sealed request: ``receive`` and ``send`` as its handler sees them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._answer: SealedAnswer | None = None

    @property
    def owes_an_answer(self) -> bool:
        return self._answer is not None and not self._answer.began

    async def receive(self) -> Message:
        """Raises whatever is wrong with the envelope, the first time that the body is asked for."""
        if self._answer is not None:
            return await self._receive()
        coordinator = self._scope["app"].state.coordinator
        coordinator.sealed_requests.key()
        raw = await read_body(Request(self._scope, self._receive), coordinator.settings.inference_body_bytes_max)
        try:
            envelope = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidSealedEnvelope from None
        opened = await coordinator.sealed_requests.open(
            envelope.kid or "", envelope.ephemeral_public_key, envelope.ciphertext
        )
        self._answer = SealedAnswer(opened.channel, opened.kid)
        return {"type": "http.request", "body": opened.body, "more_body": False}

    async def send(self, message: Message) -> None:
        if self._answer is None:
            await self._send(message)
        else:
            for sealed in self._answer.seal(message):
                await self._send(sealed)


def _says_sealed(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bool(value.split(b";", 1)[0].strip().lower() == SEALED_MEDIA_TYPE.encode())
    return False


def _as_plain(scope: Scope) -> Scope:
    """The scope of the request inside of the envelope."""
    plain = {**scope, SEALED: True}
    headers = MutableHeaders(raw=list(scope["headers"]))
    del headers["content-length"]
    headers["content-type"] = "application/json"
    plain["headers"] = headers.raw
    return plain
