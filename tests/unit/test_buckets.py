from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.buckets import IDLE_SECONDS_MAX, Buckets, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_is_full_at_first_and_fills_again(clock: Clock) -> None:
    buckets, rate = Buckets(clock), Rate(per_second=2, burst=10)
    buckets.take("ada", rate, 10)
    assert buckets.level("ada", rate).remaining == 0
    assert buckets.wait_seconds("ada", rate, 1) == 0.5
    clock.now += 3
    assert buckets.level("ada", rate).remaining == 6
    assert buckets.level("ada", rate).full_in_seconds == 2
    clock.now += 1_000
    assert buckets.level("ada", rate).remaining == 10


def test_what_was_taken_too_much_is_waited_for(clock: Clock) -> None:
    buckets, rate = Buckets(clock), Rate(1, 10)
    buckets.take("ada", rate, 25)
    assert buckets.level("ada", rate).remaining == 0
    assert buckets.wait_seconds("ada", rate, 1) == 16


def test_what_is_given_back_never_overflows(clock: Clock) -> None:
    buckets, rate = Buckets(clock), Rate(1, 10)
    buckets.take("ada", rate, -5)
    assert buckets.level("ada", rate).remaining == 10


def test_more_than_a_bucket_holds_needs_a_full_one(clock: Clock) -> None:
    buckets, rate = Buckets(clock), Rate(1, 10)
    assert buckets.wait_seconds("ada", rate, 1_000) == 0
    buckets.take("ada", rate, 1)
    assert buckets.wait_seconds("ada", rate, 1_000) == 1


def test_names_do_not_share(clock: Clock) -> None:
    buckets, rate = Buckets(clock), Rate(1, 1)
    buckets.take("ada", rate, 1)
    assert buckets.wait_seconds("grace", rate, 1) == 0


def test_idle_buckets_are_forgotten(clock: Clock) -> None:
    buckets, rate = Buckets(clock), Rate(1, 1)
    for number in range(100):
        buckets.take(f"early {number}", rate, 1)
    clock.now += IDLE_SECONDS_MAX + 1
    for number in range(60):
        buckets.take(f"late {number}", rate, 1)
    assert len(buckets) == 60


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 3)), max_size=60))
def test_no_more_is_let_through_than_burst_and_rate_allow(steps: list[tuple[float, float]]) -> None:
    clock = Clock()
    buckets, rate = Buckets(clock), Rate(2, 5)
    taken, began = 0.0, clock.now
    for pause, amount in steps:
        clock.now += pause
        if buckets.wait_seconds("ada", rate, amount) == 0:
            buckets.take("ada", rate, amount)
            taken += amount
        allowed = rate.burst + (clock.now - began) * rate.per_second
        assert taken <= allowed or math.isclose(taken, allowed, rel_tol=1e-9)
