"""/v1/device/*: how ``darkbloom login`` gets a machine its token (consumer API, section 15)."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate_session, token_of
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.coordinator import Coordinator
from api.identity.desk import answer, identity_of, needed_text
from api.identity.devices import CODE_SECONDS, POLL_SECONDS, DeviceLogin, normalised
from api.identity.limits import address_of
from domain.errors import AuthenticationFailed, InvalidRequest
from domain.people import LinkRefused
from domain.protocol import PROVIDER_TOKEN_PREFIX

router = APIRouter()

PAGE = "/link"
WORDS_CHARACTERS_MAX = 64


@router.post("/v1/device/code")
async def begin(request: Request) -> Response:
    desk = identity_of(request)
    devices = desk.need_devices()
    desk.limits.count_device_request(address_of(request))
    machine_name, chip = await _what_it_says(request)
    made = await devices.begin(machine_name=machine_name, chip=chip)
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
    try:
        redeemed = await devices.redeem(needed_text(body, "device_code"))
    except LinkRefused:
        return answer({"status": "access_denied"})
    if redeemed is None:
        return answer({"status": "authorization_pending"})
    token, account_id = redeemed
    return answer({"status": "authorized", "token": token, "account_id": account_id})


@router.get("/v1/device/pending")
async def show(request: Request) -> Response:
    """The machine that shows a code, before its owner says anything."""
    devices, account_id = await _owner(request)
    typed = request.query_params.get("user_code", "")
    found = await devices.who_asks_for(needed_text({"user_code": typed}, "user_code"), account_id)
    return answer(
        {
            "user_code": normalised(typed),
            "machine_name": found.name,
            "chip": found.chip,
            "requested_at": found.asked_at,
            "expires_at": found.asked_at + timedelta(seconds=CODE_SECONDS),
        }
    )


@router.post("/v1/device/deny")
async def refuse(request: Request) -> Response:
    devices, account_id = await _owner(request)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    await devices.refuse(needed_text(body, "user_code"), account_id)
    return answer({"status": "denied", "message": "The machine is told so, and is not linked."})


@router.post("/v1/device/approve")
async def approve(request: Request) -> Response:
    devices, account_id = await _owner(request)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    await devices.approve(needed_text(body, "user_code"), account_id)
    return answer({"status": "approved", "message": "The machine is linked; it goes on within a few seconds."})


@router.post("/v1/device/revoke")
async def unlink(request: Request) -> Response:
    """A machine gives its own token back, which it sends as the bearer."""
    devices = identity_of(request).need_devices()
    token = token_of(request.headers)
    if not token.startswith(PROVIDER_TOKEN_PREFIX) or not await devices.unlink(token):
        raise AuthenticationFailed("This is no provider token, or it was revoked already.")
    return answer({"status": "revoked"})


async def _owner(request: Request) -> tuple[DeviceLogin, str]:
    """The account of whoever is signed in. Raises Forbidden, RateLimited and NotConfigured."""
    desk = identity_of(request)
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate_session(request.headers, coordinator.credentials)
    coordinator.rate_limits.count_financial(caller, request.scope)
    return desk.need_devices(), caller.account_id


async def _what_it_says(request: Request) -> tuple[str, str]:
    """The machine's name and chip, as far as it tells; the body may be missing, as older agents leave it out.

    Raises:
        InvalidRequest: it is not JSON, or one of them is no text.
    """
    try:
        said = msgspec.convert(await read_json_object(request, CONTROL_BYTES_MAX, may_be_empty=True), _Said)
    except msgspec.ValidationError:
        raise InvalidRequest("'machine_name' and 'chip' must be texts.") from None
    return _one_line(said.machine_name), _one_line(said.chip)


class _Said(msgspec.Struct, frozen=True):
    machine_name: str = ""
    chip: str = ""


def _one_line(text: str) -> str:
    """A stranger's words: no control characters, and not many."""
    return "".join(letter for letter in text if letter.isprintable()).strip()[:WORDS_CHARACTERS_MAX]
