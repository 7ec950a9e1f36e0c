"""POST /v1/invite/redeem: promotional credit for an invite code (consumer API, section 16)."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.consumer.idempotency import answered_once
from api.coordinator import Coordinator
from domain.errors import InvalidRequest
from domain.eventsourced import Actor
from domain.inviting import RedeemInvite, normalised
from domain.money import format_usd, format_usd_cents

router = APIRouter()


@router.post("/v1/invite/redeem")
async def redeem(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    coordinator.rate_limits.count_financial(caller, request.scope)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    code = body.get("code")
    if not isinstance(code, str):
        raise InvalidRequest("'code' must be the invite code.", param="code")
    command = RedeemInvite(
        actor=Actor("consumer", caller.account_id),
        correlation_id=caller.account_id,
        code=normalised(code),
        account_id=caller.account_id,
    )

    async def credit() -> bytes:
        amount, balance = await coordinator.ledger.run(command)
        return msgspec.json.encode(
            {"credited_usd": format_usd_cents(amount), "balance_usd": format_usd(balance.balance_micro_usd)}
        )

    return await answered_once(request, coordinator, body, credit)
