"""/v1/admin/invite-codes: an administrator makes, lists and ends invite codes (consumer API, section 16)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.admin.access import admit_admin
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.consumer.payments import rfc3339
from domain.errors import InvalidRequest
from domain.eventsourced import Actor
from domain.inviting import CreateInvite, DeactivateInvite, normalised
from domain.money import format_usd_cents, parse_usd

router = APIRouter()


class InviteRow(Protocol):
    @property
    def code(self) -> str: ...

    @property
    def amount_micro_usd(self) -> int: ...

    @property
    def max_uses(self) -> int: ...

    @property
    def used_count(self) -> int: ...

    @property
    def is_active(self) -> bool: ...

    @property
    def expires_at(self) -> datetime | None: ...

    @property
    def created_at(self) -> datetime: ...


class Invites(Protocol):
    async def newest(self) -> Sequence[InviteRow]: ...


@router.post("/v1/admin/invite-codes")
async def create(request: Request) -> Response:
    coordinator, caller = await admit_admin(request)
    coordinator.rate_limits.count_financial(caller, request.scope)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    command = CreateInvite(
        actor=Actor("admin", caller.key_id),
        correlation_id=secrets.token_hex(16),
        code=_code(body.get("code")),
        amount_micro_usd=_amount(body.get("amount_usd")),
        max_uses=_uses(body.get("max_uses")),
        expires_at=_moment(body.get("expires_at")),
    )
    await coordinator.ledger.run(command)
    made = {
        "code": command.code,
        "amount_usd": format_usd_cents(command.amount_micro_usd),
        "max_uses": command.max_uses,
        "expires_at": None if command.expires_at is None else rfc3339(command.expires_at),
    }
    return _answer(made, 201)


@router.get("/v1/admin/invite-codes")
async def show_all(request: Request) -> Response:
    """The newest thousand; a code that was made or used a moment ago may still be missing, or look unused."""
    await admit_admin(request)
    invites: Invites = request.app.state.invites
    return _answer({"invite_codes": [_shown(row) for row in await invites.newest()]})


@router.delete("/v1/admin/invite-codes")
async def deactivate(request: Request) -> Response:
    coordinator, caller = await admit_admin(request)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    code = body.get("code")
    if not isinstance(code, str):
        raise InvalidRequest("'code' must name the invite code.", param="code")
    actor = Actor("admin", caller.key_id)
    await coordinator.ledger.run(
        DeactivateInvite(actor=actor, correlation_id=secrets.token_hex(16), code=normalised(code))
    )
    return _answer({"status": "deactivated"})


def _answer(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


def _shown(row: InviteRow) -> dict[str, Any]:
    shown = {
        "code": row.code,
        "amount_usd": format_usd_cents(row.amount_micro_usd),
        "max_uses": row.max_uses,
        "used_count": row.used_count,
        "active": row.is_active,
        "created_at": rfc3339(row.created_at),
    }
    return shown | ({} if row.expires_at is None else {"expires_at": rfc3339(row.expires_at)})


def _code(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"INV-{secrets.token_hex(4).upper()}"
    if not isinstance(value, str):
        raise InvalidRequest("'code' must be a text.", param="code")
    return normalised(value)


def _amount(value: Any) -> int:
    """Dollars and cents, as a number or a text. A number is read by its digits, so that it stays exact."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        amount = parse_usd(str(value), fraction_digits_max=2) if is_number or isinstance(value, str) else 0
    except ValueError:  # NotAnAmount is one, and so is a number of thousands of digits
        amount = 0
    if amount <= 0:
        raise InvalidRequest("'amount_usd' must be dollars above 0, with at most two decimals.", param="amount_usd")
    return amount


def _uses(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 5.0 is a whole number in JSON
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest("'max_uses' must be a whole number.", param="max_uses")
    return max(1, value)


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest("'expires_at' must be a time with its zone, as RFC 3339 has it.", param="expires_at")
    return moment
