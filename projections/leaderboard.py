"""leaderboard_daily: what each linked account earned by day, and the public standings from it (money, 11.2 and 11.3).

The table knows accounts; what is published knows pseudonyms only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from domain.eventsourced import DomainEvent
from domain.pseudonyms import pseudonyms_of
from domain.requests import RequestSettled
from projections.page import Connection, Page
from projections.sums import Sums, columns_of

UPSERT = """
INSERT INTO leaderboard_daily AS t (day, account_id, earnings_micro_usd, tokens, jobs)
SELECT * FROM unnest(%s::date[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (day, account_id) DO UPDATE SET earnings_micro_usd = t.earnings_micro_usd + excluded.earnings_micro_usd,
    tokens = t.tokens + excluded.tokens, jobs = t.jobs + excluded.jobs
"""

_STANDINGS = """
WITH standings AS (
    SELECT account_id, sum(earnings_micro_usd)::bigint AS earnings, sum(tokens)::bigint AS tokens,
           sum(jobs)::bigint AS jobs
    FROM (
        SELECT account_id, earnings_micro_usd, tokens, jobs FROM leaderboard_daily WHERE day >= %(first_day)s
        UNION ALL
        SELECT account_id, amount_micro_usd, prompt_tokens + completion_tokens, 1 FROM provider_earnings
        WHERE account_id <> '' AND settled_at >= %(since)s AND settled_at < %(first_day)s::timestamp AT TIME ZONE 'UTC'
    ) AS earned
    GROUP BY account_id
)
"""
"""Whole days from the table, and the part of a day in which a rolling window begins from the earnings themselves."""

LEADERBOARD = (
    _STANDINGS
    + """
SELECT account_id, earnings, tokens, jobs FROM standings
ORDER BY CASE %(metric)s WHEN 'tokens' THEN tokens WHEN 'jobs' THEN jobs ELSE earnings END DESC,
         earnings DESC, tokens DESC, jobs DESC
FETCH FIRST %(limit)s ROWS WITH TIES
"""
)

NETWORK_TOTALS = (
    _STANDINGS
    + """
SELECT coalesce(sum(earnings), 0)::bigint, coalesce(sum(tokens), 0)::bigint, coalesce(sum(jobs), 0)::bigint, count(*)
FROM standings
"""
)

WINDOWS: Mapping[str, timedelta | None] = {
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
}
METRICS = ("earnings", "tokens", "jobs")


class Standing(NamedTuple):
    rank: int
    pseudonym: str
    earnings_micro_usd: int
    tokens: int
    jobs: int


class NetworkTotals(NamedTuple):
    earnings_micro_usd: int
    tokens: int
    jobs: int
    active_accounts: int


class LeaderboardDaily:
    """Earnings of unlinked machines and free requests do not count."""

    name = "leaderboard_daily"
    events: Sequence[type[DomainEvent]] = (RequestSettled,)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        sums: Sums[tuple[date, str]] = defaultdict(list)
        for _, _, event in page.of(RequestSettled):
            if event.provider_amount and event.provider_account_id:
                key = (event.timestamp.astimezone(UTC).date(), event.provider_account_id)
                sums[key].append((event.provider_amount, event.prompt_tokens + event.completion_tokens, 1))
        if sums:
            connection.execute(UPSERT, columns_of(sums))


def leaderboard(
    connection: Connection, *, metric: str, window: str, limit: int, now: datetime, secret: bytes
) -> list[Standing]:
    """The best accounts of a rolling window under their pseudonyms; ``metric`` and ``window`` are canonical names."""
    parameters = {**_window(window, now), "metric": metric, "limit": limit}
    found = connection.execute(LEADERBOARD, parameters).fetchall()
    names = pseudonyms_of([row[0] for row in found], secret)
    column = METRICS.index(metric)
    entries = [(names[account_id], counters) for account_id, *counters in found]
    entries.sort(key=lambda entry: (-entry[1][column], *(-counter for counter in entry[1]), entry[0]))
    return [Standing(rank, name, *counters) for rank, (name, counters) in enumerate(entries[:limit], 1)]


def network_totals(connection: Connection, *, window: str, now: datetime) -> NetworkTotals:
    """What everybody together earned in a rolling window."""
    row = connection.execute(NETWORK_TOTALS, _window(window, now)).fetchone()
    assert row is not None
    return NetworkTotals(*row)


def _window(window: str, now: datetime) -> dict[str, datetime | date]:
    """Where a window begins, and the first day that lies in it as a whole."""
    length = WINDOWS[window]
    if length is None:
        return {"since": datetime.min.replace(tzinfo=UTC), "first_day": date.min}
    since = now.astimezone(UTC) - length
    midnight = since.replace(hour=0, minute=0, second=0, microsecond=0)
    return {"since": since, "first_day": (since if since == midnight else midnight + timedelta(days=1)).date()}
