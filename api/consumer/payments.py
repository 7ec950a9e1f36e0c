"""GET /v1/payments/balance and /v1/payments/usage (money, sections 5.2 and 5.4)."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate
from api.coordinator import Coordinator
from api.ports import UsageRow
from domain.errors import InvalidRequest
from domain.money import format_usd

router = APIRouter()

USAGE_LIMIT_DEFAULT = 100
USAGE_LIMIT_MAX = 1_000
_NEWEST = 2**62


@router.get("/v1/payments/balance")
async def get_balance(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    balance = await coordinator.books.balance(caller.account_id)
    answer = {
        "balance_micro_usd": balance.balance_micro_usd,
        "balance_usd": format_usd(balance.balance_micro_usd),
        "withdrawable_micro_usd": balance.withdrawable_micro_usd,
        "withdrawable_usd": format_usd(balance.withdrawable_micro_usd),
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.get("/v1/payments/usage")
async def get_usage(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    limit = _limit(request.query_params.get("limit", ""))
    before = _position(request.query_params.get("cursor", ""))
    rows = await coordinator.books.usage(caller.account_id, before_position=before, limit=limit + 1)
    page, has_more = rows[:limit], len(rows) > limit
    answer = {
        "usage": [_entry(row) for row in page],
        "has_more": has_more,
        "next_cursor": _cursor(page[-1].position) if has_more else None,
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def particulars_of(row: UsageRow) -> dict[str, str | int]:
    """What was charged as remembered, and what was metered beside tokens, if anything was."""
    cached: dict[str, str | int] = {"cached_tokens": row.cached_tokens} if row.cached_tokens else {}
    return cached | ({"unit": row.unit, "units": row.units} if row.unit else {})


def _entry(row: UsageRow) -> dict[str, str | int]:
    return {
        "request_id": str(row.job_id),
        "job_id": str(row.job_id),
        "model": row.model,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        **particulars_of(row),
        "cost_micro_usd": row.cost_micro_usd,
        "timestamp": rfc3339(row.settled_at),
    }


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _limit(text: str) -> int:
    asked = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    return asked if 1 <= asked <= USAGE_LIMIT_MAX else USAGE_LIMIT_DEFAULT


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def _position(cursor: str) -> int:
    if not cursor:
        return _NEWEST
    try:
        text = base64.urlsafe_b64decode(cursor[:64] + "=" * (-len(cursor[:64]) % 4)).decode("ascii")
        return max(0, min(int(text), _NEWEST))
    except (binascii.Error, ValueError):
        raise InvalidRequest("'cursor' is not one that this endpoint gave out.", param="cursor") from None
