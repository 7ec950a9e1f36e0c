"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect (consumer API, section 9)."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.consumer.auth import authenticate
from api.consumer.body import read_json_object
from api.consumer.destination import own_account_in
from api.consumer.messages_rendering import read_messages
from api.consumer.messages_request import parse_messages
from api.consumer.serving import model_of, serve
from api.coordinator import Coordinator


async def create_message(request: Request) -> Response:
    return await serve(request, read_messages)


async def count_tokens(request: Request) -> Response:
    """The estimate that routing uses too; free, and no machine is asked."""
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    coordinator.rate_limits.count_request(caller, request.scope)
    chat = parse_messages(await read_json_object(request, coordinator.settings.inference_body_bytes_max)).chat
    await model_of(chat.model, coordinator, own_account=own_account_in(request.headers, caller))
    return Response(msgspec.json.encode({"input_tokens": chat.prompt_estimate}), media_type="application/json")


ROUTES = (
    Route("/v1/messages", create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
)
