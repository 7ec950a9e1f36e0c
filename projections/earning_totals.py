"""earning_totals: what each machine earned for each account, over its life."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from domain.eventsourced import DomainEvent
from domain.requests import RequestSettled
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

UPSERT = """
INSERT INTO earning_totals AS t (account_id, machine_id, amount_micro_usd, jobs, prompt_tokens, completion_tokens)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (account_id, machine_id) DO UPDATE SET amount_micro_usd = t.amount_micro_usd + excluded.amount_micro_usd,
    jobs = t.jobs + excluded.jobs, prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = t.completion_tokens + excluded.completion_tokens
"""

OF_ACCOUNT = """
SELECT coalesce(sum(amount_micro_usd), 0)::bigint, coalesce(sum(jobs), 0)::bigint,
       coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(completion_tokens), 0)::bigint
FROM earning_totals WHERE account_id = %s
"""
"""An account's earnings over its life, in the order of EarningTotal."""

OF_MACHINE = """
SELECT coalesce(sum(amount_micro_usd), 0)::bigint, coalesce(sum(jobs), 0)::bigint,
       coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(completion_tokens), 0)::bigint
FROM earning_totals WHERE machine_id = %s
"""
"""A machine's earnings over its life, for whichever accounts, in the order of EarningTotal."""


class EarningTotal(NamedTuple):
    amount_micro_usd: int
    jobs: int
    prompt_tokens: int
    completion_tokens: int


class EarningTotals:
    """What an unlinked machine earned stands under the empty account."""

    name = "earning_totals"
    events: Sequence[type[DomainEvent]] = (RequestSettled,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[str, str]] = defaultdict(list)
        for _, _, event in page.of(RequestSettled):
            if event.provider_amount:
                key = (event.provider_account_id, event.machine_id)
                sums[key].append((event.provider_amount, 1, event.prompt_tokens, event.completion_tokens))
        if sums:
            connection.execute(UPSERT, columns_of(sums))
