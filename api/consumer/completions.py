"""POST /v1/completions: OpenAI's legacy dialect (consumer API, section 8)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.completions_rendering import read_completion
from api.consumer.serving import serve

router = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    return await serve(request, read_completion)
