"""The outermost layer of every HTTP answer: request ids, CORS, the mode header, the access log, crash recovery.

Written on ASGI itself because it must not buffer streams. Source: consumer API, sections 2.1 to 2.3.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ANSWER_HEADERS, REQUEST_ID, error_response
from domain.errors import InternalError, PayloadTooLarge

access_log = logging.getLogger("darkbloom.access")
log = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024 * 1024
"""No endpoint takes more; most take far less, and bound what does not say its length."""

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ALLOWED_METHODS = "GET, POST, PUT, PATCH, DELETE, OPTIONS"
_ALLOWED_HEADERS = (
    "Content-Type, Authorization, X-Api-Key, anthropic-version, anthropic-beta, X-Request-ID, Idempotency-Key, "
    "X-Darkbloom-Route"
)
EXPOSED_HEADERS = (
    "X-Request-ID, request-id, X-Inference-Job-ID, X-Provider-Attested, X-Provider-Trust-Level, X-Provider-Chip, "
    "X-Provider-Id, X-Provider-Model, X-Provider-Encrypted, X-Provider-Secure-Enclave, X-Attestation-Se-Public-Key, "
    "X-SE-Signature, X-Response-Hash, X-Timing, X-Eigen-Sealed, X-Eigen-Sealed-Kid, X-Darkbloom-Mode, x-should-retry, "
    "Retry-After, X-RateLimit-Reset, Idempotent-Replayed, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    "anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining, anthropic-ratelimit-requests-reset, "
    "anthropic-ratelimit-tokens-limit, anthropic-ratelimit-tokens-remaining, anthropic-ratelimit-tokens-reset"
)


def new_request_id() -> str:
    """12 characters that carry 60 random bits."""
    bits = secrets.randbits(60)
    return "".join(_ALPHABET[(bits >> shift) & 31] for shift in range(0, 60, 5))


class Edge:
    """While ``leaving`` says so, every connection is closed after its answer, so that the next request of its client
    goes to another gateway."""

    def __init__(
        self, app: ASGIApp, *, development: bool, origins: Sequence[str], leaving: Callable[[], bool] = lambda: False
    ) -> None:
        self._app = app
        self._development = development
        self._origins = frozenset(origins)
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _ACCEPTED_ID.fullmatch(sent_id) else new_request_id()
        scope[REQUEST_ID] = request_id
        more: dict[str, str] = {}
        scope[ANSWER_HEADERS] = more
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(headers, request_id)]
                if self._leaving():
                    more["connection"] = "close"  # in the place of what an answer says of it
                if more:
                    MutableHeaders(scope=message).update(more)
            await send(message)

        try:
            length = headers.get("content-length", "")
            if scope["method"] == "OPTIONS":
                await send_with_headers({"type": "http.response.start", "status": 204, "headers": []})
                await send_with_headers({"type": "http.response.body", "body": b""})
            elif length.isdecimal() and int(length) > BODY_BYTES_MAX:
                await error_response(PayloadTooLarge(), scope)(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  # the last line of defence: nothing that a request causes may end the server
            log.error("request %s crashed: %s\n%s", request_id, type(error).__name__, _frames(error))
            if not status:
                await error_response(InternalError(), scope)(scope, receive, send_with_headers)
        finally:
            access_log.info(
                "%s %s %d %.1f ms id=%s",
                scope["method"],
                _printable(scope["path"]),
                status,
                (time.perf_counter() - started) * 1000,
                request_id,
            )

    def _headers(self, request: Headers, request_id: str) -> Iterator[tuple[bytes, bytes]]:
        """What every answer carries besides its own."""
        raw_id = request_id.encode("latin-1")
        yield b"x-request-id", raw_id
        yield b"request-id", raw_id
        if self._development:
            yield b"x-darkbloom-mode", b"development"
        if self._origins:
            yield b"vary", b"Origin"
            yield from self._cors_headers(request)

    def _cors_headers(self, request: Headers) -> Iterator[tuple[bytes, bytes]]:
        origin = request.get("origin")
        if origin in self._origins:
            yield b"access-control-allow-origin", origin.encode("latin-1")
            yield b"access-control-allow-credentials", b"true"
            yield b"access-control-allow-methods", _ALLOWED_METHODS.encode()
            allowed = ", ".join((_ALLOWED_HEADERS, *_stainless(request)))
            yield b"access-control-allow-headers", allowed.encode("latin-1")
            yield b"access-control-expose-headers", EXPOSED_HEADERS.encode()
            yield b"access-control-max-age", b"600"


def _printable(path: str) -> str:
    """A path as it may stand in a log line: short, and unable to begin another one."""
    return "".join(character if character.isprintable() else "?" for character in path[:200])


def _stainless(request: Headers) -> list[str]:
    asked = request.get("access-control-request-headers", "")
    return [name.strip() for name in asked.split(",") if re.fullmatch(r"\s*x-stainless-[a-z-]{1,40}\s*", name.lower())]


def _frames(error: Exception) -> str:
    """The frames alone: an exception's own text may quote what was sent."""
    return "".join(traceback.format_tb(error.__traceback__))
