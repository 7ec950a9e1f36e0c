"""Reads the small JSON bodies of the auditor's endpoints into their types."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from api.consumer.body import read_json_object
from domain.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

BODY_BYTES_MAX = 64 * 1024


async def read_body(request: Request, kind: type[T]) -> T:
    """A request without a body says what an empty object says.

    Raises:
        InvalidRequest: the body does not fit, with what does not.
    """
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    sent = await read_json_object(request, BODY_BYTES_MAX) if has_body else {}
    try:
        return msgspec.convert(sent, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The request body is not right: {str(error)[:200]}.") from None
