"""/auth/* for consoles, /v1/admin/auth/* for terminals (consumer API, section 3.4; console, section 4.2)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate_session, token_of
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.identity.desk import answer, identity_of, needed_text
from api.identity.limits import address_of
from api.identity.sign_in import CODE_SECONDS, SignedIn, read_address
from domain.errors import SignInRefused

router = APIRouter()


@router.post("/auth/email/start")
async def start(request: Request) -> Response:
    """Send a code. Whether anybody has an account at the address cannot be told from the answer."""
    sign_in = identity_of(request).need_sign_in()
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    challenge = await sign_in.start(read_address(body.get("email")), address_of(request))
    return answer({"status": "sent", "challenge": challenge, "expires_in": CODE_SECONDS})


@router.post("/auth/email/verify")
async def verify(request: Request) -> Response:
    """Turn a code into a session."""
    sign_in = identity_of(request).need_sign_in()
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    email, code = read_address(body.get("email")), needed_text(body, "code")
    person, subject = await sign_in.person_of(email, needed_text(body, "challenge"), code)
    return answer(_shown(await sign_in.session_for(person, subject)))


@router.post("/auth/refresh")
async def refresh(request: Request) -> Response:
    sign_in = identity_of(request).need_sign_in()
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    return answer(_shown(await sign_in.refresh(needed_text(body, "refresh_token"))))


@router.post("/auth/logout")
async def sign_out(request: Request) -> Response:
    """End this session, or with ``everywhere`` all that the account has here."""
    desk = identity_of(request)
    await authenticate_session(request.headers, desk.doorkeeper)
    body = await read_json_object(request, CONTROL_BYTES_MAX, may_be_empty=True)
    claims, person = await desk.doorkeeper.session_of(token_of(request.headers))
    await desk.people.sign_out(claims, person.account_id)
    if body.get("everywhere") is True:
        await desk.people.sign_out_everywhere(person.account_id)
    return answer({"status": "signed_out"})


@router.post("/v1/admin/auth/init")
async def start_admin(request: Request) -> Response:
    sign_in = identity_of(request).need_sign_in()
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    await sign_in.start_admin(read_address(body.get("email")), address_of(request))
    return answer({"status": "sent", "expires_in": CODE_SECONDS})


@router.post("/v1/admin/auth/verify")
async def verify_admin(request: Request) -> Response:
    """The same for an administrator's address, and for no other."""
    desk = identity_of(request)
    sign_in = desk.need_sign_in()
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    email, code = read_address(body.get("email")), needed_text(body, "code")
    person, subject = await sign_in.person_of(email, "", code)
    if not desk.doorkeeper.is_admin(email):
        raise SignInRefused("This address is not an administrator's.")
    return answer(_shown(await sign_in.session_for(person, subject)))


def _shown(signed_in: SignedIn) -> dict[str, Any]:
    return {
        "token": signed_in.token,
        "token_type": "Bearer",
        "expires_in": signed_in.seconds,
        "refresh_token": signed_in.refresh_token,
        "account_id": signed_in.account_id,
    }
