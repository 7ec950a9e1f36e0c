"""POST /v1/completions: OpenAI's legacy dialect (consumer API, section 8)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.consumer.completions_rendering import read_completion
from api.consumer.serving import serve


async def create_completion(request: Request) -> Response:
    return await serve(request, read_completion)


ROUTES = (Route("/v1/completions", create_completion, methods=["POST"]),)
