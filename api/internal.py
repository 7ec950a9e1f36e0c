"""What the coordinator's own processes say to this gateway.

POST /internal/notices is where schedulers in other processes tell it about its attempts.
"""

from __future__ import annotations

import hmac

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.coordinator import Coordinator
from domain.dispatch import NOTICES_PATH, SECRET_HEADER, Notice
from domain.errors import AuthenticationFailed, InvalidRequest

NOTICE_BYTES_MAX = 1024 * 1024

router = APIRouter(include_in_schema=False)

_decoder = msgspec.json.Decoder(Notice)


@router.post(NOTICES_PATH)
async def take_notice(request: Request) -> Response:
    """204 when somebody waits for the notice, 410 when nobody does any more."""
    body = await read_internal(request, NOTICE_BYTES_MAX)
    coordinator: Coordinator = request.app.state.coordinator
    try:
        notice = _decoder.decode(body)
    except msgspec.DecodeError:
        raise InvalidRequest("The body is not a notice.") from None
    return Response(status_code=204 if coordinator.switchboard.hand_over(notice) else 410)


async def read_internal(request: Request, bytes_max: int) -> bytes:
    """The body of a request of one of the coordinator's own processes.

    Raises:
        AuthenticationFailed: it does not know their secret; nothing was read.
        InvalidRequest: the body is too large.
    """
    coordinator: Coordinator = request.app.state.coordinator
    secret = coordinator.internal_secret
    sent = request.headers.get(SECRET_HEADER, "")
    if not secret or not hmac.compare_digest(sent.encode(), secret.encode()):
        raise AuthenticationFailed("This endpoint is for the coordinator's own processes.")
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > bytes_max:
            raise InvalidRequest("The body is too large.")
    return bytes(received)
