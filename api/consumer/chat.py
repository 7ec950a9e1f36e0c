"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.consumer.responses import read_conversation
from api.consumer.serving import serve


async def create_chat_completion(request: Request) -> Response:
    return await serve(request, read_conversation)


ROUTES = (Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),)
