from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.routing import Hedging
from domain.routing.hedging import BURST_MAX, KINDS_MAX, SAMPLES_MAX, SAMPLES_MIN, FirstContentTimes, HedgeBudget

KIND = ("model", True)


class TestTimes:
    @given(st.lists(st.floats(0, 1e4), min_size=SAMPLES_MIN, max_size=3 * SAMPLES_MAX), st.floats(0.01, 1.0))
    def test_a_share_of_the_latest_did_not_exceed_the_quantile(self, seconds: list[float], share: float) -> None:
        times = FirstContentTimes()
        for one in seconds:
            times.note(KIND, one)
        latest = seconds[-SAMPLES_MAX:]
        assert times.quantile(KIND, share) == sorted(latest)[math.ceil(share * len(latest)) - 1]

    def test_too_few_say_nothing(self) -> None:
        times = FirstContentTimes()
        for _ in range(SAMPLES_MIN - 1):
            times.note(KIND, 1.0)
        assert times.quantile(KIND, 0.95) is None
        times.note(KIND, 1.0)
        assert times.quantile(KIND, 0.95) == 1.0
        assert times.quantile(("model", False), 0.95) is None

    def test_of_too_many_kinds_the_one_that_was_not_seen_for_longest_is_forgotten(self) -> None:
        times = FirstContentTimes()
        for _ in range(SAMPLES_MIN):
            for number in range(KINDS_MAX):
                times.note((f"model-{number}", True), 1.0)
        times.note(("model-0", True), 1.0)
        times.note(("one more", True), 1.0)
        assert times.quantile(("model-0", True), 0.5) == 1.0
        assert times.quantile(("model-1", True), 0.5) is None


class TestBudget:
    @given(st.integers(0, 100), st.lists(st.sampled_from(["request", "hedge", "undo"]), max_size=400))
    def test_hedges_never_exceed_their_share_of_the_requests(self, percent: int, course: list[str]) -> None:
        budget = HedgeBudget(percent)
        requests = hedges = 0
        for step in course:
            if step == "request":
                requests += 1
                budget.count_request()
            elif step == "hedge":
                hedges += budget.take()
            elif hedges:
                hedges -= 1
                budget.give_back()
            assert 100 * hedges <= percent * requests

    def test_all_of_the_share_can_be_used(self) -> None:
        budget, hedges = HedgeBudget(5), 0
        for _ in range(1_000):
            budget.count_request()
            hedges += budget.take()
        assert hedges == 50

    def test_quiet_times_save_up_only_a_few(self) -> None:
        budget = HedgeBudget(5)
        for _ in range(10_000):
            budget.count_request()
        assert sum(budget.take() for _ in range(100)) == BURST_MAX


class TestHedging:
    def test_it_can_be_turned_off(self) -> None:
        hedging = Hedging(0, 0.95)
        for _ in range(SAMPLES_MIN):
            hedging.count_request()
            hedging.note_first_content(KIND, 1.0)
        assert hedging.late_after_seconds(KIND) is None
        assert not hedging.begin()

    def test_it_counts(self) -> None:
        hedging = Hedging(100, 0.95)
        for _ in range(3):
            hedging.count_request()
        assert [hedging.begin() for _ in range(4)] == [True, True, True, False]
        hedging.undo()
        hedging.won()
        assert (hedging.requests, hedging.hedges, hedging.wins) == (3, 2, 1)
        assert hedging.begin()

    @pytest.mark.parametrize(("share", "late"), [(0.5, 10.0), (0.95, 19.0), (1.0, 20.0)])
    def test_late_is_what_most_were_not(self, share: float, late: float) -> None:
        hedging = Hedging(5, share)
        for second in range(1, 21):
            hedging.note_first_content(KIND, float(second))
        assert hedging.late_after_seconds(KIND) == late
