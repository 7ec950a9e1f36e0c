"""GET /v1/generations/{id}: what one answer cost."""

from __future__ import annotations

from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate
from api.consumer.payments import particulars_of, rfc3339
from api.coordinator import Coordinator
from domain.errors import NotFound
from domain.money import format_usd

router = APIRouter()

_PREFIXES = ("chatcmpl-", "cmpl-", "msg_", "resp_")


@router.get("/v1/generations/{generation_id}")
async def get_generation(request: Request, generation_id: str) -> Response:
    """By the id of an answer in any dialect, or by its job's id."""
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    job_id = _job_id(generation_id)
    row = None if job_id is None else await coordinator.books.usage_of(caller.account_id, job_id)
    if row is None:
        raise NotFound("This account has no settled request of that id.")
    generation = {
        "id": generation_id,
        "object": "generation",
        "job_id": str(row.job_id),
        "model": row.model,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
        **particulars_of(row),
        "cost_micro_usd": row.cost_micro_usd,
        "cost_usd": format_usd(row.cost_micro_usd),
        "settled_at": rfc3339(row.settled_at),
    }
    return Response(msgspec.json.encode(generation), media_type="application/json")


def _job_id(generation_id: str) -> UUID | None:
    for prefix in _PREFIXES:
        generation_id = generation_id.removeprefix(prefix)
    try:
        return UUID(generation_id)
    except ValueError:
        return None
