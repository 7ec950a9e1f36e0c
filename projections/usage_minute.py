"""usage_minute: charged usage of each minute that had any, for the time series of the public numbers (money, 11.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from domain.eventsourced import DomainEvent
from domain.requests import RequestSettled
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

UPSERT = """
INSERT INTO usage_minute AS t (minute, requests, prompt_tokens, completion_tokens)
SELECT * FROM unnest(%s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (minute) DO UPDATE SET requests = t.requests + excluded.requests,
    prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = t.completion_tokens + excluded.completion_tokens
"""

SINCE = """
SELECT minute, requests, prompt_tokens, completion_tokens FROM usage_minute WHERE minute >= %s ORDER BY minute
"""
"""The minutes from one on, ascending."""

_MINUTE = timedelta(minutes=1)
_NO_MINUTE = datetime.min.replace(tzinfo=UTC)


class UsageMinute:
    """A request counts in the minute in which it was settled."""

    name = "usage_minute"
    events: Sequence[type[DomainEvent]] = (RequestSettled,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[datetime]] = defaultdict(list)
        minute = next_minute = _NO_MINUTE
        for _, _, event in page.of(RequestSettled):
            if not event.free:
                if not minute <= event.timestamp < next_minute:  # the next event mostly falls into the same one
                    minute = event.timestamp.replace(second=0, microsecond=0)
                    next_minute = minute + _MINUTE
                sums[minute,].append((1, event.prompt_tokens, event.completion_tokens))
        if sums:
            connection.execute(UPSERT, columns_of(sums))
