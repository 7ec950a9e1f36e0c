"""POST /v1/responses, and which of OpenAI's two dialects a body speaks (consumer API, section 7)."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.consumer.chat_rendering import read_chat
from api.consumer.rendering import Call
from api.consumer.responses_rendering import read_responses
from api.consumer.serving import serve


def read_conversation(body: dict[str, Any]) -> Call:
    """Both paths take both bodies: the one with ``messages`` is a chat, the one with ``input`` is not."""
    return read_responses(body) if not body.get("messages") and "input" in body else read_chat(body)


async def create_response(request: Request) -> Response:
    return await serve(request, read_conversation)


ROUTES = (Route("/v1/responses", create_response, methods=["POST"]),)
