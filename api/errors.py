"""Errors as HTTP answers, in the envelope of the dialect that a path speaks (consumer API, section 2.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from domain.errors import (
    AuthenticationFailed,
    DarkbloomError,
    EndpointNotFound,
    InvalidRequest,
    MethodNotAllowed,
    RateLimited,
)

REQUEST_ID = "darkbloom.request_id"
"""Where the outermost layer leaves the id of this exchange in the ASGI scope."""

ANSWER_HEADERS = "darkbloom.answer_headers"
"""Where inner layers leave headers for the answer, whatever answer it will be."""

ANTHROPIC_PATHS = "/v1/messages"

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def envelope(error: DarkbloomError) -> dict[str, Any]:
    """OpenAI's shape."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "code": error.wire_code,
            "param": error.param,
        }
    }


def anthropic_envelope(error: DarkbloomError, request_id: str = "") -> dict[str, Any]:
    """Anthropic's shape; ``code`` carries our own type, and ``param`` the member at fault."""
    other = "invalid_request_error" if error.http_status < 500 else "api_error"
    inner: dict[str, Any] = {
        "type": _ANTHROPIC_TYPES.get(error.http_status, other),
        "message": error.message,
        "code": error.wire_code,
        "param": error.param,
    }
    return {"type": "error", "error": inner} | ({"request_id": request_id} if request_id else {})


def speaks_anthropic(path: str) -> bool:
    return path == ANTHROPIC_PATHS or path.startswith(ANTHROPIC_PATHS + "/")


def headers_of(error: DarkbloomError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def error_response(error: DarkbloomError, scope: Scope, extra_headers: dict[str, str] | None = None) -> Response:
    anthropic = speaks_anthropic(scope["path"])
    body = anthropic_envelope(error, scope.get(REQUEST_ID, "")) if anthropic else envelope(error)
    return Response(
        msgspec.json.encode(body),
        status_code=error.http_status,
        media_type="application/json",
        headers=headers_of(error) | (extra_headers or {}),
    )


def install(app: FastAPI, count_wrong_credential: Callable[[str], None] = lambda _: None) -> None:
    """Answer the domain's errors and the router's own in one shape.

    ``count_wrong_credential`` is told the address that one came from, and raises RateLimited when it was one too many.
    """

    @app.exception_handler(DarkbloomError)
    async def _domain_error(request: Request, error: DarkbloomError) -> Response:
        if isinstance(error, AuthenticationFailed) and request.client is not None:
            try:
                count_wrong_credential(request.client.host)
            except RateLimited as too_many:
                error = too_many
        return error_response(error, request.scope)

    @app.exception_handler(HTTPException)
    async def _router_error(request: Request, error: HTTPException) -> Response:
        scope = request.scope
        if error.status_code == 404:
            missing = EndpointNotFound(f"There is no endpoint {request.method} {request.url.path[:200]}.")
            return error_response(missing, scope)
        if error.status_code == 405:
            return error_response(MethodNotAllowed(), scope, dict(error.headers or {}))
        return error_response(InvalidRequest("The request could not be read."), scope)
