"""GET /v1/me/providers and /v1/me/providers/{id}/routing: why an account's machine gets work, or gets none.

A machine's id is the hash of its signing key. Everything is computed from what is true now, by the functions that
route requests.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate
from api.coordinator import Coordinator
from api.providers.verdict import details_of, standing_in, summary_of
from domain.errors import NotFound

router = APIRouter()


@router.get("/v1/me/providers")
async def list_machines(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    policy, size_of = coordinator.policy, coordinator.catalog.size_of
    records = await coordinator.fleet.machines_of(caller.account_id)
    listed = [summary_of(record, standing_in(record, policy, size_of=size_of)) for record in records]
    return _json({"providers": listed})


@router.get("/v1/me/providers/{machine_id}/routing")
async def explain_machine(request: Request, machine_id: str) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    for record in await coordinator.fleet.machines_of(caller.account_id, machine_id):
        standing = standing_in(record, coordinator.policy, size_of=coordinator.catalog.size_of)
        return _json(summary_of(record, standing) | details_of(record, standing, coordinator.policy))
    raise NotFound("No machine of this id is linked to your account; GET /v1/me/providers lists those that are.")


def _json(answer: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})
