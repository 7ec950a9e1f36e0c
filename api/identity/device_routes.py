"""/v1/device/*: how ``darkbloom login`` gets a machine its token (consumer API, section 15)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate_session, token_of
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.coordinator import Coordinator
from api.identity.desk import answer, identity_of, needed_text
from api.identity.devices import CODE_SECONDS, POLL_SECONDS
from api.identity.limits import address_of
from domain.errors import AuthenticationFailed
from domain.protocol import PROVIDER_TOKEN_PREFIX

router = APIRouter()

PAGE = "/link"


@router.post("/v1/device/code")
async def begin(request: Request) -> Response:
    desk = identity_of(request)
    devices = desk.need_devices()
    desk.limits.count_device_request(address_of(request))
    made = await devices.begin()
    page = (desk.console_url or f"{request.url.scheme}://{request.url.netloc}") + PAGE
    return answer(
        {
            "device_code": made.device_code,
            "user_code": made.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?code={made.user_code}",
            "expires_in": CODE_SECONDS,
            "interval": POLL_SECONDS,
        }
    )


@router.post("/v1/device/token")
async def redeem(request: Request) -> Response:
    desk = identity_of(request)
    devices = desk.need_devices()
    desk.limits.count_device_request(address_of(request))
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    redeemed = await devices.redeem(needed_text(body, "device_code"))
    if redeemed is None:
        return answer({"status": "authorization_pending"})
    token, account_id = redeemed
    return answer({"status": "authorized", "token": token, "account_id": account_id})


@router.post("/v1/device/approve")
async def approve(request: Request) -> Response:
    desk = identity_of(request)
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate_session(request.headers, coordinator.credentials)
    coordinator.rate_limits.count_financial(caller, request.scope)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    await desk.need_devices().approve(needed_text(body, "user_code"), caller.account_id)
    return answer({"status": "approved", "message": "The machine is linked; it goes on within a few seconds."})


@router.post("/v1/device/revoke")
async def unlink(request: Request) -> Response:
    """A machine gives its own token back, which it sends as the bearer."""
    devices = identity_of(request).need_devices()
    token = token_of(request.headers)
    if not token.startswith(PROVIDER_TOKEN_PREFIX) or not await devices.unlink(token):
        raise AuthenticationFailed("This is no provider token, or it was revoked already.")
    return answer({"status": "revoked"})
