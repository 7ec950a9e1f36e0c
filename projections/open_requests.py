"""open_requests: admitted requests that have not ended, with the gateway that answers for each and the hold on it.

Every hold is a request's, so this is also the table of the open holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from domain.eventsourced import DomainEvent, Written
from domain.requests import RequestAdmitted, RequestReleased, RequestSettled
from projections.page import Connection, Page
from projections.projection import copy_rows

INSERT = """
INSERT INTO open_requests (request_id, account_id, gateway_id, model, reserved_micro_usd, admitted_at, expires_at)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::uuid[], %s::text[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])
ON CONFLICT (request_id) DO NOTHING
"""

COPY = """
COPY open_requests (request_id, account_id, gateway_id, model, reserved_micro_usd, admitted_at, expires_at)
FROM STDIN (FORMAT BINARY)
"""
TYPES = ("uuid", "text", "uuid", "text", "int8", "timestamptz", "timestamptz")

DELETE = "DELETE FROM open_requests WHERE request_id = ANY(%s::uuid[])"

OPEN_HOLDS = """
SELECT request_id, account_id, reserved_micro_usd, model, admitted_at, expires_at FROM open_requests
WHERE admitted_at <= %(now)s - make_interval(secs => %(older_than_seconds)s)
ORDER BY admitted_at, request_id LIMIT %(limit)s
"""
"""Holds that have been open for so long, the oldest first."""

COMMITTED = "SELECT coalesce(sum(reserved_micro_usd), 0)::bigint FROM open_requests"
"""What all open holds together reserve."""


class OpenRequests:
    """Written with the admission and the end themselves, and by a replay."""

    name = "open_requests"
    events: Sequence[type[DomainEvent]] = (RequestAdmitted, RequestSettled, RequestReleased)
    needs_final_state = False
    only_adds = False

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        admitted = [_row(event) for event in written.events if isinstance(event, RequestAdmitted)]
        if admitted:
            yield INSERT, [list(column) for column in zip(*admitted, strict=True)]
        ended = [event.request_id for event in written.events if isinstance(event, RequestSettled | RequestReleased)]
        if ended:
            yield DELETE, (ended,)

    def apply(self, connection: Connection, page: Page) -> None:
        opened = {event.request_id: event for _, _, event in page.of(RequestAdmitted)}
        ended = [event.request_id for _, _, event in page.of(RequestSettled)]
        ended += [event.request_id for _, _, event in page.of(RequestReleased)]
        # Most requests begin and end in one page and never touch the table.
        ended_before = [request_id for request_id in ended if opened.pop(request_id, None) is None]
        if ended_before:
            connection.execute(DELETE, (ended_before,))
        rows = [
            (UUID(request_id), account_id, UUID(gateway_id), *rest)
            for request_id, account_id, gateway_id, *rest in map(_row, opened.values())
        ]
        copy_rows(connection, COPY, TYPES, rows)


def _row(event: RequestAdmitted) -> tuple[Any, ...]:
    return (
        event.request_id,
        event.account_id,
        event.gateway_id,
        event.model,
        event.reserved,
        event.timestamp,
        event.expires_at,
    )
