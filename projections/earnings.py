"""provider_earnings: what each machine earned, job by job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domain.requests import RequestSettled
from projections.runner import Connection, Recorded

INSERT = """
INSERT INTO provider_earnings (job_id, account_id, machine_id, provider_key, model, amount_micro_usd, prompt_tokens,
                               completion_tokens, settled_at, position)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[],
                     %s::bigint[], %s::timestamptz[], %s::bigint[])
ON CONFLICT (job_id) DO NOTHING
"""

TOTAL_OF_MACHINE = """
SELECT coalesce(sum(amount_micro_usd), 0)::bigint, count(*) FROM provider_earnings WHERE machine_id = %s
"""


class Earnings:
    name = "provider_earnings"
    topics: Sequence[str] = (RequestSettled.TOPIC,)

    def apply(self, connection: Connection, batch: Sequence[Recorded]) -> None:
        rows: list[tuple[Any, ...]] = []
        for position, _, _, event in batch:
            assert isinstance(event, RequestSettled)
            if event.provider_amount:
                rows.append(
                    (
                        event.job_id,
                        event.provider_account_id,
                        event.machine_id,
                        event.provider_key,
                        event.model,
                        event.provider_amount,
                        event.prompt_tokens,
                        event.completion_tokens,
                        event.timestamp,
                        position,
                    )
                )
        if rows:
            connection.execute(INSERT, [list(column) for column in zip(*rows, strict=True)])
