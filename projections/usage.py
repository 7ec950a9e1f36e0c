"""usage_entries: every settled request of an account, there as soon as it is settled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from domain.eventsourced import DomainEvent, Written
from domain.requests import RequestSettled
from projections.page import Connection, Page
from projections.projection import copy_rows

INSERT = """
INSERT INTO usage_entries
    (job_id, account_id, model, prompt_tokens, completion_tokens, cached_tokens, unit, units, cost_micro_usd,
     settled_at, position)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[],
                     %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[])
ON CONFLICT (job_id) DO NOTHING
"""

COPY = """
COPY usage_entries (job_id, account_id, model, prompt_tokens, completion_tokens, cached_tokens, unit, units,
                    cost_micro_usd, settled_at, position) FROM STDIN (FORMAT BINARY)
"""
TYPES = ("uuid", "text", "text", "int8", "int8", "int8", "text", "int8", "int8", "timestamptz", "int8")

USAGE_PAGE = """
SELECT job_id, model, prompt_tokens, completion_tokens, cached_tokens, unit, units, cost_micro_usd, settled_at, position
FROM usage_entries
WHERE account_id = %s AND position < %s ORDER BY position DESC LIMIT %s
"""
"""An account's usage, newest first, from before a position."""

USAGE_OF = """
SELECT job_id, model, prompt_tokens, completion_tokens, cached_tokens, unit, units, cost_micro_usd, settled_at, position
FROM usage_entries
WHERE job_id = %s AND account_id = %s
"""


class UsageEntries:
    """Written with the settlement itself, and by a replay. Free requests are not listed."""

    name = "usage_entries"
    events: Sequence[type[DomainEvent]] = (RequestSettled,)
    needs_final_state = False
    only_adds = True

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        rows = _rows(
            (position, event)
            for position, event in enumerate(written.events, written.first_position)
            if isinstance(event, RequestSettled)
        )
        if rows:
            yield INSERT, [list(column) for column in zip(*rows, strict=True)]

    def apply(self, connection: Connection, page: Page) -> None:
        rows = _rows((position, event) for position, _, event in page.of(RequestSettled))
        copy_rows(connection, COPY, TYPES, [(UUID(job_id), *rest) for job_id, *rest in rows])


def _rows(settled: Iterable[tuple[int, RequestSettled]]) -> list[tuple[Any, ...]]:
    return [
        (
            event.job_id,
            event.account_id,
            event.model,
            event.prompt_tokens,
            event.completion_tokens,
            event.cached_tokens,
            event.unit,
            event.units,
            event.cost,
            event.timestamp,
            position,
        )
        for position, event in settled
        if not event.free
    ]
