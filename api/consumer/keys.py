"""/v1/auth/keys: an account's own keys, for who is signed in (consumer API, section 4).

A key that was made with the scope ``keys`` stands for its account here too, so that programs can manage keys.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate, require_scope
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.consumer.idempotency import answered_once
from api.consumer.keys_request import read_key_settings
from api.consumer.payments import rfc3339
from api.coordinator import Coordinator
from domain.errors import BadRequest, Forbidden
from domain.keys import Caller, KeyEntry
from domain.money import format_usd

router = APIRouter()


@router.post("/v1/auth/keys")
async def create_key(request: Request) -> Response:
    coordinator, caller = await _manager(request)
    coordinator.rate_limits.count_financial(caller, request.scope)
    body = await read_json_object(request, CONTROL_BYTES_MAX, may_be_empty=True)
    settings = read_key_settings(body, datetime.now(UTC))

    async def create() -> bytes:
        made = await coordinator.keys.create(caller.account_id, settings)
        return msgspec.json.encode({"api_key": made.secret, "account_id": caller.account_id} | _shown(made.entry))

    return await answered_once(request, coordinator, body, create)


@router.get("/v1/auth/keys")
async def list_keys(request: Request) -> Response:
    coordinator, caller = await _manager(request)
    include_revoked = request.query_params.get("include_revoked") in ("1", "true")
    entries = await coordinator.keys.list_of(caller.account_id, include_revoked=include_revoked)
    listing = {"object": "list", "data": [_shown(entry) for entry in entries]}
    return Response(msgspec.json.encode(listing), media_type="application/json")


@router.delete("/v1/auth/keys")
async def revoke_key(request: Request) -> Response:
    coordinator, caller = await _manager(request)
    coordinator.rate_limits.count_financial(caller, request.scope)
    body = await read_json_object(request, CONTROL_BYTES_MAX, may_be_empty=True)
    named = [body[name] for name in ("key", "id") if name in body]
    if not named or not all(isinstance(name, str) and name for name in named):
        raise BadRequest("Name the key that is to be revoked in 'key' or its id in 'id'.")
    key = named[0]
    if not key.isprintable() or not await coordinator.keys.revoke(caller.account_id, key):
        raise Forbidden("This account has no active key like that.")
    return Response(b'{"status":"revoked"}', media_type="application/json")


async def _manager(request: Request) -> tuple[Coordinator, Caller]:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    require_scope(caller, "keys")
    return coordinator, caller


def _shown(entry: KeyEntry) -> dict[str, Any]:
    settings = entry.settings
    limit = settings.spend_limit
    return {
        "id": entry.key_id,
        "name": settings.name,
        "label": entry.label,
        "role": settings.role,
        "scopes": settings.scopes,
        "created_at": rfc3339(entry.created_at),
        "expires_at": _moment(settings.expires_at),
        "last_used_at": _moment(entry.last_used_at),
        "active": entry.revoked_at is None and (settings.expires_at is None or settings.expires_at > datetime.now(UTC)),
        "limit_micro_usd": limit.limit_micro_usd if limit else None,
        "limit_usd": format_usd(limit.limit_micro_usd) if limit else None,
        "limit_reset": limit.reset if limit else "none",
        "rpm_limit": settings.requests_per_minute,
        "tpm_limit": settings.tokens_per_minute,
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
