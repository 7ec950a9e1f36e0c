"""A key's spend limit is exact: what is spent in a period and what is held never exceed it together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InsufficientFunds, KeyLimitReached
from domain.key_budgets import KeyBudget, KeyLimit, Reset, period_of
from domain.ledger import Release
from domain.requests import job_id_of
from domain.wallet import Wallet
from tests.support.examples import admit, dispatch, grant, settle
from tests.support.memory_ledger import MemoryLedger


@pytest.fixture
def ledger() -> MemoryLedger:
    ledger = MemoryLedger()
    ledger.execute(grant("ada", 1_000_000))
    return ledger


def request(number: int) -> UUID:
    return UUID(int=number + 1)


def ask(ledger: MemoryLedger, number: int, limit: int | None, reset: Reset = "none", tokens: int = 500) -> None:
    """Admit and dispatch a request whose worst case is ``2 * tokens``."""
    key_limit = None if limit is None else KeyLimit(limit, reset)
    ledger.execute(admit("ada", tokens, tokens, request_id=request(number), key_limit=key_limit))
    ledger.execute(dispatch(request_id=request(number)))


def settle_one(ledger: MemoryLedger, number: int, tokens: int) -> None:
    job_id = str(job_id_of(request(number), 1))
    ledger.execute(settle("ada", tokens, tokens, request_id=request(number), job_id=job_id))


def budget_of(ledger: MemoryLedger) -> KeyBudget:
    return ledger.state_of(KeyBudget, "key")


def test_a_key_without_a_limit_records_nothing(ledger: MemoryLedger) -> None:
    ask(ledger, 1, None)
    settle_one(ledger, 1, 100)
    assert budget_of(ledger).version == 0


def test_open_requests_count_with_their_worst_case(ledger: MemoryLedger) -> None:
    ask(ledger, 1, 2_500)
    ask(ledger, 2, 2_500)
    with pytest.raises(KeyLimitReached) as refused:
        ask(ledger, 3, 2_500)
    assert refused.value.http_status == 402
    assert ledger.state_of(Wallet, "ada").held == 2_000


def test_what_is_not_spent_can_be_spent_again(ledger: MemoryLedger) -> None:
    ask(ledger, 1, 1_000)
    settle_one(ledger, 1, 100)
    assert (budget_of(ledger).spent, budget_of(ledger).held) == (200, 0)
    ask(ledger, 2, 1_200)
    ledger.execute(Release(request_id=request(2), account_id="ada", reason="failed"))
    assert (budget_of(ledger).spent, budget_of(ledger).held) == (200, 0)


def test_a_limit_covers_its_whole_amount_and_not_one_more(ledger: MemoryLedger) -> None:
    with pytest.raises(KeyLimitReached):
        ask(ledger, 1, 999)
    ask(ledger, 1, 1_000)


def test_the_balance_is_looked_at_first(ledger: MemoryLedger) -> None:
    with pytest.raises(InsufficientFunds) as refused:
        ask(ledger, 1, 1, tokens=1_000_000)
    assert type(refused.value) is InsufficientFunds


def test_a_new_period_begins_with_nothing_spent_but_with_what_is_still_held(ledger: MemoryLedger) -> None:
    ask(ledger, 1, 2_000, "daily")
    settle_one(ledger, 1, 500)
    ask(ledger, 2, 2_000, "daily")
    ledger.now += timedelta(days=1)
    ledger.commit()
    with pytest.raises(KeyLimitReached):
        ask(ledger, 3, 2_000, "daily", tokens=501)
    ask(ledger, 3, 2_000, "daily")
    settle_one(ledger, 2, 500)
    assert budget_of(ledger).spent == 1_000


def test_a_snapshot_holds_everything_that_a_budget_knows(ledger: MemoryLedger) -> None:
    ask(ledger, 1, 3_000, "daily")
    ask(ledger, 2, 3_000, "daily")
    settle_one(ledger, 1, 100)
    budget = budget_of(ledger)
    restored = KeyBudget(budget.id)
    restored.restore(budget.state())
    restored.version, restored.modified_on = budget.version, budget.modified_on
    assert vars(restored) == vars(budget)
    assert (restored.spent, restored.held, restored.key_id) == (200, 1_000, "key")


@pytest.mark.parametrize(
    ("reset", "period"),
    [("none", ""), ("daily", "2026-05-07"), ("weekly", "2026-05-04"), ("monthly", "2026-05-01")],
)
def test_periods_begin_at_midnight_on_monday_and_on_the_first(reset: Reset, period: str) -> None:
    assert period_of(datetime(2026, 5, 7, 23, 59, 59, tzinfo=UTC), reset) == period


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "settle", "release", "day"]), st.integers(1, 600), st.integers(0, 5)),
        max_size=40,
    )
)
def test_no_order_of_requests_and_ends_spends_more_than_the_limit_in_a_day(
    steps: list[tuple[str, int, int]],
) -> None:
    ledger = MemoryLedger()
    ledger.execute(grant("ada", 1_000_000))
    limit, spent_today, open_requests, number = 2_000, 0, list[tuple[int, int]](), 0
    for what, tokens, which in steps:
        if what == "ask":
            number += 1
            try:
                ask(ledger, number, limit, "daily", tokens)
            except KeyLimitReached:
                held = sum(2 * bound for _, bound in open_requests)
                assert spent_today + held + max(100, 2 * tokens) > limit
            else:
                open_requests.append((number, max(50, tokens)))
        elif what == "day":
            ledger.now += timedelta(days=1)
            ledger.commit()
            spent_today = 0
        elif open_requests:
            asked, bound = open_requests.pop(which % len(open_requests))
            if what == "settle":
                before = ledger.state_of(Wallet, "ada").credits
                settle_one(ledger, asked, min(tokens, bound))
                spent_today += before - ledger.state_of(Wallet, "ada").credits
            else:
                ledger.execute(Release(request_id=request(asked), account_id="ada", reason="failed"))
        assert spent_today <= limit
