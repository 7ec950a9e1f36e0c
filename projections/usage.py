"""usage_entries: every settled request of an account, there as soon as it is settled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from domain.eventsourced import Written
from domain.requests import RequestSettled

INSERT = """
INSERT INTO usage_entries
    (job_id, account_id, model, prompt_tokens, completion_tokens, cost_micro_usd, settled_at, position)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
                     %s::timestamptz[], %s::bigint[])
ON CONFLICT (job_id) DO NOTHING
"""

USAGE_PAGE = """
SELECT job_id, model, prompt_tokens, completion_tokens, cost_micro_usd, settled_at, position FROM usage_entries
WHERE account_id = %s AND position < %s ORDER BY position DESC LIMIT %s
"""
"""An account's usage, newest first, from before a position."""

USAGE_OF = """
SELECT job_id, model, prompt_tokens, completion_tokens, cost_micro_usd, settled_at, position FROM usage_entries
WHERE job_id = %s AND account_id = %s
"""


class UsageEntries:
    """The inline projection of settlements. Free requests are not listed."""

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        settled = [
            (position, event)
            for position, event in enumerate(written.events, written.first_position)
            if isinstance(event, RequestSettled) and not event.free
        ]
        if settled:
            yield (
                INSERT,
                (
                    [event.job_id for _, event in settled],
                    [event.account_id for _, event in settled],
                    [event.model for _, event in settled],
                    [event.prompt_tokens for _, event in settled],
                    [event.completion_tokens for _, event in settled],
                    [event.cost for _, event in settled],
                    [event.timestamp for _, event in settled],
                    [position for position, _ in settled],
                ),
            )
