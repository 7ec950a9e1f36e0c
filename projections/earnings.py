"""provider_earnings: what each machine earned, job by job."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from domain.eventsourced import DomainEvent
from domain.requests import RequestSettled
from projections.page import Connection, Page
from projections.projection import copy_rows

COPY = """
COPY provider_earnings (job_id, account_id, machine_id, provider_key, model, amount_micro_usd, prompt_tokens,
                        completion_tokens, cached_tokens, settled_at, position) FROM STDIN (FORMAT BINARY)
"""
TYPES = ("uuid", "text", "text", "text", "text", "int8", "int8", "int8", "int8", "timestamptz", "int8")

TOTAL_OF_MACHINE = """
SELECT coalesce(sum(amount_micro_usd), 0)::bigint, count(*) FROM provider_earnings WHERE machine_id = %s
"""

OF_ACCOUNT = """
SELECT job_id, machine_id, provider_key, model, amount_micro_usd, prompt_tokens, completion_tokens, cached_tokens,
       settled_at, position
FROM provider_earnings WHERE account_id = %s AND position < %s ORDER BY position DESC LIMIT %s
"""
"""What an account earned, newest first, from before a position."""


class Earnings:
    name = "provider_earnings"
    events: Sequence[type[DomainEvent]] = (RequestSettled,)
    only_adds = True

    def apply(self, connection: Connection, page: Page) -> None:
        rows = [
            (
                UUID(event.job_id),
                event.provider_account_id,
                event.machine_id,
                event.provider_key,
                event.model,
                event.provider_amount,
                event.prompt_tokens,
                event.completion_tokens,
                event.cached_tokens,
                event.timestamp,
                position,
            )
            for position, _, event in page.of(RequestSettled)
            if event.provider_amount
        ]
        copy_rows(connection, COPY, TYPES, rows)
