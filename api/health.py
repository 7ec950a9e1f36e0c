"""GET /health and /readyz."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.coordinator import Coordinator

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """Alive, and how many machines are connected here."""
    coordinator: Coordinator = request.app.state.coordinator
    answer: dict[str, object] = {"status": "ok", "providers": len(coordinator.registry)}
    if coordinator.policy.development:
        answer["mode"] = "development"
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.get("/readyz")
async def ready(request: Request) -> Response:
    """503 while this gateway drains or has no lease, and once its ledger has stopped."""
    coordinator: Coordinator = request.app.state.coordinator
    state = "halted" if coordinator.ledger.halted else coordinator.state
    body = msgspec.json.encode({"status": state})
    return Response(body, status_code=200 if state == "ready" else 503, media_type="application/json")
