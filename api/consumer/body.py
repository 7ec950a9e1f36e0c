"""Reads a request body within its bounds of size and time (consumer API, section 2.4)."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import ClientDisconnect, Request

from domain.errors import InvalidRequest, PayloadTooLarge

RECEIVE_SECONDS_MAX = 60.0
NESTING_MAX = 128
BRACKETS_MAX = 200_000
"""Reading more objects and lists than this would hold everybody else up."""

_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


CONTROL_BYTES_MAX = 64 * 1024
"""For requests that manage something and carry no content."""


async def read_json_object(request: Request, bytes_max: int, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Read and parse a JSON object. An empty body is an empty object where that ``may_be_empty``.

    Raises:
        PayloadTooLarge: the body is over the bound; it is not read further.
        InvalidRequest: not JSON, not an object, nested too deep, or not sent within a minute.
    """
    raw = await read_body(request, bytes_max)
    return {} if may_be_empty and not raw else parse_object(raw)


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest: not JSON, not an object, or nested too deep."""
    if raw.count(b"{") + raw.count(b"[") > BRACKETS_MAX:
        raise InvalidRequest("The request body has too many objects and lists.")
    if _nesting_of(raw) > NESTING_MAX:
        raise InvalidRequest(f"The request body is nested more than {NESTING_MAX} levels deep.")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


async def read_form(request: Request, bytes_max: int) -> dict[str, str]:
    """Read what a form of a page sends; of a field that comes twice, the first value.

    Raises:
        PayloadTooLarge, InvalidRequest: as above.
    """
    raw = await read_body(request, bytes_max)
    try:
        fields = parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError:
        raise InvalidRequest("The form could not be read.") from None
    return {name: values[0] for name, values in fields.items()}


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Read a body within its bounds of size and time.

    Raises:
        PayloadTooLarge: it is over the bound; it is not read further.
        InvalidRequest: it is compressed, was not sent within a minute, or not to its end.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest("Compressed request bodies are not read; send it without 'Content-Encoding'.")
    too_large = PayloadTooLarge(f"The request body is larger than the {bytes_max} bytes that this endpoint accepts.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > bytes_max:
        raise too_large
    received = bytearray()
    try:
        async with asyncio.timeout(RECEIVE_SECONDS_MAX):
            async for part in request.stream():
                received += part
                if len(received) > bytes_max:
                    raise too_large
    except TimeoutError:
        raise InvalidRequest(f"The request body did not arrive within {RECEIVE_SECONDS_MAX:.0f} seconds.") from None
    except ClientDisconnect:
        raise InvalidRequest("The connection closed before the request body was complete.") from None
    return bytes(received)


def _nesting_of(raw: bytes) -> int:
    """How deep objects and arrays stand in each other; what stands inside of strings does not count."""
    if raw.count(b"{") + raw.count(b"[") <= NESTING_MAX:
        return 0
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(raw):
        found = match.group()
        if found in (b"{", b"["):
            depth += 1
            deepest = max(deepest, depth)
        elif found in (b"}", b"]"):
            depth -= 1
    return deepest
