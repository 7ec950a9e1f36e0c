"""Lists in OpenAI's shape, page by page, the newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from domain.errors import InvalidRequest, NotFound

LIMIT_MAX = 100
LIMIT_USUAL = 20


class Page(NamedTuple):
    """``after`` is the last id of the page before."""

    after: str | None
    limit: int


def page_of(request: Request) -> Page:
    """Raises InvalidRequest, and NotFound for an id that cannot be one."""
    query = request.query_params
    limit = query.get("limit", str(LIMIT_USUAL))
    if not (limit.isascii() and limit.isdigit() and int(limit) > 0):
        raise InvalidRequest("'limit' must be a whole number from 1.", param="limit")
    if query.get("order", "desc") != "desc":
        raise InvalidRequest("Lists come with the newest first; leave 'order' out.", param="order")
    after = query.get("after")
    if after is not None and "\0" in after:
        raise NotFound("There is no entry of that id, so nothing comes after it.", param="after")
    return Page(after, min(int(limit), LIMIT_MAX))


def listing(entries: Sequence[dict[str, Any]], page: Page) -> Response:
    """``entries`` has one more than the page, when there is one."""
    shown = entries[: page.limit]
    listed = {
        "object": "list",
        "data": shown,
        "has_more": len(entries) > len(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }
    return Response(msgspec.json.encode(listed), media_type="application/json")
