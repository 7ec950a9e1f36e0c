"""The lines of a batch: a request each in its file, and a result each in the files that come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from api.consumer.body import parse_object
from api.consumer.completions_rendering import read_completion
from api.consumer.responses import read_conversation
from api.consumer.serving import Reader
from api.errors import envelope
from domain.batches import LINES_MAX, LineError
from domain.errors import DarkbloomError, InvalidRequest

READERS: Mapping[str, Reader] = {
    "/v1/chat/completions": read_conversation,
    "/v1/responses": read_conversation,
    "/v1/completions": read_completion,
}

ERRORS_SHOWN_MAX = 50
CUSTOM_ID_CHARACTERS_MAX = 256

_encode = msgspec.json.Encoder().encode


class LineRequest(NamedTuple):
    custom_id: str
    body: dict[str, Any]


def lines_of(content: bytes, endpoint: str, line_bytes_max: int) -> tuple[Sequence[bytes], Sequence[LineError]]:
    """The lines of a file, and what is wrong with them. What stands in a line is never repeated in an error."""
    lines = [line for line in content.split(b"\n") if line.strip()]
    if not lines:
        return lines, [LineError("empty_file", "The file has no requests.")]
    if len(lines) > LINES_MAX:
        return lines, [LineError("too_many_requests", f"A batch has at most {LINES_MAX} requests.")]
    errors: list[LineError] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            if len(line) > line_bytes_max:
                raise InvalidRequest(f"A line has at most {line_bytes_max} bytes.")
            custom_id = read_line(line, endpoint).custom_id
            if custom_id in seen:
                raise InvalidRequest("'custom_id' comes twice.", param="custom_id")
            seen.add(custom_id)
        except InvalidRequest as error:
            errors.append(LineError("invalid_request", error.message, number, error.param))
            if len(errors) == ERRORS_SHOWN_MAX:
                break
    return lines, errors


def read_line(line: bytes, endpoint: str) -> LineRequest:
    """Raises InvalidRequest. The body is looked into when the line runs."""
    request = parse_object(line)
    custom_id, body = request.get("custom_id"), request.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_CHARACTERS_MAX:
        raise InvalidRequest(
            f"'custom_id' must be a text of 1 to {CUSTOM_ID_CHARACTERS_MAX} characters.", param="custom_id"
        )
    if request.get("method") != "POST":
        raise InvalidRequest("'method' must be 'POST'.", param="method")
    if request.get("url") != endpoint:
        raise InvalidRequest("'url' must be the endpoint of the batch.", param="url")
    if not isinstance(body, dict):
        raise InvalidRequest("'body' must be an object.", param="body")
    return LineRequest(custom_id, body)


def answered(custom_id: str, request_id: UUID, body: bytes) -> bytes:
    """The result of a line that was answered."""
    response = {"status_code": 200, "request_id": str(request_id), "body": msgspec.Raw(body)}
    return _result(custom_id, request_id, response, None)


def refused(custom_id: str, request_id: UUID, error: DarkbloomError) -> bytes:
    """The result of a line that got an error instead of an answer."""
    response = {"status_code": error.http_status, "request_id": str(request_id), "body": envelope(error)}
    return _result(custom_id, request_id, response, None)


def expired(custom_id: str, request_id: UUID) -> bytes:
    """The result of a line whose turn never came."""
    error = {"code": "batch_expired", "message": "The batch's time was over before this request was answered."}
    return _result(custom_id, request_id, None, error)


def _result(custom_id: str, request_id: UUID, response: Any, error: Any) -> bytes:
    return _encode({"id": f"batch_req_{request_id.hex}", "custom_id": custom_id, "response": response, "error": error})
