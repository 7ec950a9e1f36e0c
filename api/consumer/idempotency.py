"""``Idempotency-Key``: the first answer again, instead of the work and its cost again (spec README, decision 32).

Only answers that cost or created something are kept. An error changed nothing, so the next request is a first one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

from api.consumer.auth import token_of
from api.consumer.sealed_transport import SEALED
from api.coordinator import Coordinator
from api.ports import ReplyClaim
from domain.errors import InvalidRequest

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[!-~]{1,255}")
REPLY_BYTES_MAX = 4 * 1024 * 1024
"""A longer answer is not kept, and a request for it would be answered anew."""


class Reply(msgspec.Struct, frozen=True):
    """An answer with status 200, whole or as the stream that it was."""

    headers: dict[str, str]
    body: bytes

    def response(self) -> Response:
        return Response(self.body, headers=self.headers | {"Idempotent-Replayed": "true"})


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class Recording:
    """Gathers an answer while it is sent, for whoever asks with the same key again. Without a claim it does nothing."""

    def __init__(self, claim: ReplyClaim | None) -> None:
        self._claim = claim
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def begin(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def add(self, body: bytes) -> None:
        if self._claim is not None:
            self._body += body
            if len(self._body) > REPLY_BYTES_MAX:
                self.give_up()

    async def keep(self) -> None:
        """Raises ServiceUnavailable when it could not be stored."""
        if self._claim is not None:
            await self._claim.keep(_encode(Reply(self._headers, bytes(self._body))))
            self._claim = None

    def give_up(self) -> None:
        if self._claim is not None:
            self._claim.give_up()
        self._claim, self._body = None, bytearray()


async def replayed_or_claimed(request: Request, coordinator: Coordinator, body: dict[str, Any]) -> Response | Recording:
    """The first answer to this request, or where to record it.

    Raises:
        IdempotencyConflict: the key was used with another body.
        IdempotencyInFlight: the first request is still being answered.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return Recording(None)
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"'{HEADER}' must have 1 to 255 printable ASCII characters and no space.")
    found = await coordinator.replies.claim(
        token_of(request.headers),
        key,
        f"{request.method} {request.url.path}{' sealed' if SEALED in request.scope else ''}",
        msgspec.json.encode(body, order="deterministic"),
        coordinator.gateway_id,
    )
    return _decode(found).response() if isinstance(found, bytes) else Recording(found)


async def answered_once(
    request: Request,
    coordinator: Coordinator,
    body: dict[str, Any],
    answer: Callable[[], Awaitable[bytes]],
) -> Response:
    """Make a JSON answer, or give the first one again."""
    found = await replayed_or_claimed(request, coordinator, body)
    if isinstance(found, Response):
        return found
    try:
        made = await answer()
        found.begin({"content-type": "application/json"})
        found.add(made)
        await found.keep()
    finally:
        found.give_up()
    return Response(made, media_type="application/json")
