"""open_requests: admitted requests that have not ended, with the gateway that answers for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from domain.eventsourced import Written
from domain.requests import RequestAdmitted, RequestReleased, RequestSettled

INSERT = """
INSERT INTO open_requests (request_id, account_id, gateway_id, model, reserved_micro_usd, admitted_at, expires_at)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::uuid[], %s::text[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])
ON CONFLICT (request_id) DO NOTHING
"""

DELETE = "DELETE FROM open_requests WHERE request_id = ANY(%s::uuid[])"


class OpenRequests:
    """The inline projection of admissions and ends."""

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        admitted = [event for event in written.events if isinstance(event, RequestAdmitted)]
        if admitted:
            yield (
                INSERT,
                (
                    [event.request_id for event in admitted],
                    [event.account_id for event in admitted],
                    [event.gateway_id for event in admitted],
                    [event.model for event in admitted],
                    [event.reserved for event in admitted],
                    [event.timestamp for event in admitted],
                    [event.expires_at for event in admitted],
                ),
            )
        ended = [event.request_id for event in written.events if isinstance(event, RequestSettled | RequestReleased)]
        if ended:
            yield DELETE, (ended,)
