"""Errors as HTTP answers, in the OpenAI envelope (consumer API, section 2.5)."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from domain.errors import DarkbloomError, EndpointNotFound, InvalidRequest, MethodNotAllowed


def envelope(error: DarkbloomError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "code": error.wire_code,
            "param": error.param,
        }
    }


def headers_of(error: DarkbloomError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.http_status in (402, 504):
        # Both SDKs would repeat these, and repeating helps nobody.
        headers["x-should-retry"] = "false"
    return headers


def error_response(error: DarkbloomError, extra_headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(envelope(error)),
        status_code=error.http_status,
        media_type="application/json",
        headers=headers_of(error) | (extra_headers or {}),
    )


def install(app: FastAPI) -> None:
    """Answer the domain's errors and the router's own in one shape."""

    @app.exception_handler(DarkbloomError)
    async def _domain_error(_: Request, error: DarkbloomError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def _router_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return error_response(EndpointNotFound(f"There is no endpoint {request.method} {request.url.path[:200]}."))
        if error.status_code == 405:
            return error_response(MethodNotAllowed(), dict(error.headers or {}))
        return error_response(InvalidRequest("The request could not be read."))
