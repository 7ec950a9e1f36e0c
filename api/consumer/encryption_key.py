"""GET /v1/encryption-key: what consumers seal their requests to (consumer API, section 14.1)."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.coordinator import Coordinator

router = APIRouter()


@router.get("/v1/encryption-key")
async def get_encryption_key(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    key = coordinator.sealed_requests.key()
    return Response(
        msgspec.json.encode({"kid": key.kid, "public_key": key.public_key, "algorithm": "x25519-nacl-box"}),
        media_type="application/json",
        headers={"Cache-Control": "public, max-age=300"},
    )
