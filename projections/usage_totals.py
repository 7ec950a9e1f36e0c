"""usage_totals: charged usage of each model, over the life of the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from domain.eventsourced import DomainEvent
from domain.requests import RequestSettled
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

UPSERT = """
INSERT INTO usage_totals AS t (model, requests, prompt_tokens, completion_tokens, cost_micro_usd)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (model) DO UPDATE SET requests = t.requests + excluded.requests,
    prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = t.completion_tokens + excluded.completion_tokens,
    cost_micro_usd = t.cost_micro_usd + excluded.cost_micro_usd
"""

NETWORK = """
SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(prompt_tokens), 0)::bigint,
       coalesce(sum(completion_tokens), 0)::bigint, coalesce(sum(cost_micro_usd), 0)::bigint
FROM usage_totals
"""
"""The whole network's usage, in the order of UsageTotal: as many rows are read as there are models."""


class UsageTotal(NamedTuple):
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_micro_usd: int


class UsageTotals:
    """Free requests do not count, as they are not listed as usage."""

    name = "usage_totals"
    events: Sequence[type[DomainEvent]] = (RequestSettled,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[str]] = defaultdict(list)
        for _, _, event in page.of(RequestSettled):
            if not event.free:
                sums[event.model,].append((1, event.prompt_tokens, event.completion_tokens, event.cost))
        if sums:
            connection.execute(UPSERT, columns_of(sums))


def network_usage(connection: Connection) -> UsageTotal:
    """The charged usage of everybody, as far as this projection has read."""
    row = connection.execute(NETWORK).fetchone()
    assert row is not None
    return UsageTotal(*row)
