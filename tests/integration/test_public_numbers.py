"""The read models of the public numbers: rolling windows, ties, and what does not count (money, section 11)."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from domain import events
from domain.pseudonyms import pseudonyms_of
from domain.requests import RequestSettled
from domain.transparency.leaf import microseconds_of
from projections import earning_totals, earnings, leaderboard, usage_minute
from projections.leaderboard import METRICS, WINDOWS, NetworkTotals, network_totals
from projections.page import Page
from projections.registry import lagging
from projections.usage_totals import network_usage
from tests.support.event_fixtures import current_of
from tests.support.ledger_waiting import Connection

NOW = datetime(2026, 5, 20, 9, 30, tzinfo=UTC)
SECRET = b"secret"
TEMPLATE = events.decode(RequestSettled.TOPIC, current_of(RequestSettled.TOPIC))


@pytest.fixture
def look(database: str) -> Generator[Connection, None, None]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def settled(number: int, **fields: Any) -> RequestSettled:
    before = {name: getattr(TEMPLATE, name) for name in TEMPLATE.__struct_fields__}
    usual = {
        "job_id": str(UUID(int=number)),
        "timestamp": NOW,
        "account_id": "consumer",
        "provider_account_id": "ann",
        "machine_id": "m1",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "provider_amount": 10,
        "cost": 10,
        "free": False,
    }
    return RequestSettled(**(before | usual | fields))


def apply(look: Connection, *happened: RequestSettled) -> None:
    """Give events to every projection that reads settlements."""
    page = Page(
        (position, microseconds_of(event.timestamp), event.TOPIC, events.encode(event))
        for position, event in enumerate(happened, 1)
    )
    for projection in lagging():
        if RequestSettled in projection.events:
            projection.apply(look, page)


def standings(
    look: Connection, metric: str = "earnings", window: str = "all", limit: int = 50
) -> list[tuple[Any, ...]]:
    found = leaderboard.leaderboard(look, metric=metric, window=window, limit=limit, now=NOW, secret=SECRET)
    return [tuple(one) for one in found]


def name(account_id: str) -> str:
    return pseudonyms_of([account_id], SECRET)[account_id]


def test_accounts_are_ranked_by_the_metric_under_their_pseudonyms(look: Connection) -> None:
    apply(
        look,
        settled(1, provider_amount=70),
        settled(2, provider_amount=50, provider_account_id="bob", prompt_tokens=500),
        settled(3, provider_amount=40, provider_account_id="bob"),
        settled(4, provider_amount=60, provider_account_id="cyd"),
    )

    assert standings(look) == [(1, name("bob"), 90, 503, 2), (2, name("ann"), 70, 2, 1), (3, name("cyd"), 60, 2, 1)]
    assert [row[1] for row in standings(look, "jobs")] == [name("bob"), name("ann"), name("cyd")]
    assert [row[1] for row in standings(look, "tokens", limit=2)] == [name("bob"), name("ann")]


def test_full_ties_are_ordered_by_pseudonym_also_where_the_list_is_cut(look: Connection) -> None:
    accounts = [f"acct_{number}" for number in range(9)]
    apply(look, *(settled(number, provider_account_id=account) for number, account in enumerate(accounts)))

    ranked = sorted(name(account) for account in accounts)
    assert [row[:2] for row in standings(look, limit=4)] == list(enumerate(ranked[:4], 1))


def test_unlinked_machines_free_requests_and_whoever_earned_nothing_do_not_count(look: Connection) -> None:
    apply(
        look,
        settled(1, provider_account_id=""),
        settled(2, free=True, cost=0, provider_amount=0),
        settled(3, provider_amount=0, cost=5),
        settled(4),
    )

    assert standings(look) == [(1, name("ann"), 10, 2, 1)]
    assert network_totals(look, window="all", now=NOW) == NetworkTotals(10, 2, 1, 1)
    # As usage, only the free request does not count.
    assert network_usage(look) == (3, 3, 3, 25)
    assert look.execute(earning_totals.OF_MACHINE, ("m1",)).fetchone() == (20, 2, 2, 2)
    assert look.execute(earning_totals.OF_ACCOUNT, ("ann",)).fetchone() == (10, 1, 1, 1)
    assert look.execute(earning_totals.OF_ACCOUNT, ("nobody",)).fetchone() == (0, 0, 0, 0)


def test_a_window_rolls_by_the_second_though_the_table_has_days(look: Connection) -> None:
    begins = NOW - timedelta(days=1)
    apply(
        look,
        settled(1, timestamp=begins - timedelta(microseconds=1), provider_amount=1),
        settled(2, timestamp=begins, provider_amount=10),
        settled(3, timestamp=begins.replace(hour=23, minute=59), provider_amount=100),
        settled(4, timestamp=NOW.replace(hour=0, minute=0), provider_amount=1_000),
    )

    assert network_totals(look, window="24h", now=NOW).earnings_micro_usd == 1_110
    assert network_totals(look, window="7d", now=NOW).earnings_micro_usd == 1_111


def test_days_are_those_of_utc_wherever_an_event_s_clock_stood(look: Connection) -> None:
    late = datetime(2026, 5, 19, 23, 30, tzinfo=timezone(timedelta(hours=-1)))
    apply(look, settled(1, timestamp=late))

    assert look.execute("SELECT day::text FROM leaderboard_daily").fetchall() == [("2026-05-20",)]


@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_is_a_fold_over_the_settlements_in_it(look: Connection, window: str) -> None:
    random = Random(5)
    happened = [
        settled(
            number,
            timestamp=NOW - timedelta(minutes=random.randrange(40 * 24 * 60)),
            provider_account_id=random.choice(("ann", "bob", "cyd", "")),
            provider_amount=random.randrange(3),
            prompt_tokens=random.randrange(9),
        )
        for number in range(500)
    ]
    for begin in range(0, len(happened), 77):
        apply_at(look, begin, happened[begin : begin + 77])

    length = WINDOWS[window]
    inside = [
        one
        for one in happened
        if one.provider_amount and one.provider_account_id and (length is None or one.timestamp >= NOW - length)
    ]
    assert network_totals(look, window=window, now=NOW) == (
        sum(one.provider_amount for one in inside),
        sum(one.prompt_tokens + one.completion_tokens for one in inside),
        len(inside),
        len({one.provider_account_id for one in inside}),
    )
    for metric in METRICS:
        assert sum(row[4] for row in standings(look, metric, window)) == len(inside)


def apply_at(look: Connection, position: int, happened: list[RequestSettled]) -> None:
    page = Page(
        (at, microseconds_of(event.timestamp), event.TOPIC, events.encode(event))
        for at, event in enumerate(happened, position + 1)
    )
    for projection in lagging():
        if projection.name in ("provider_earnings", "leaderboard_daily"):
            projection.apply(look, page)


def test_minutes_that_had_requests_come_ascending_in_utc(look: Connection) -> None:
    look.execute("SET TIME ZONE 'Asia/Kathmandu'")
    apply(
        look,
        settled(1, timestamp=NOW.replace(second=59), prompt_tokens=5),
        settled(2, timestamp=NOW, completion_tokens=7),
        settled(3, timestamp=NOW + timedelta(minutes=2)),
        settled(4, timestamp=NOW + timedelta(seconds=30), completion_tokens=3),  # a domain time may run back
    )

    rows = look.execute(usage_minute.SINCE, (NOW - timedelta(minutes=30),)).fetchall()
    assert rows == [(NOW, 3, 7, 11), (NOW + timedelta(minutes=2), 1, 1, 1)]
    assert look.execute(usage_minute.SINCE, (NOW + timedelta(seconds=1),)).fetchall() == rows[1:]


def test_an_account_s_earnings_come_newest_first_in_pages(look: Connection) -> None:
    apply(look, *(settled(number, provider_amount=number) for number in range(1, 6)))

    first = look.execute(earnings.OF_ACCOUNT, ("ann", 2**62, 2)).fetchall()
    second = look.execute(earnings.OF_ACCOUNT, ("ann", first[-1][-1], 2)).fetchall()

    assert [row[4] for row in first + second] == [5, 4, 3, 2]
