"""When the agent connects again, and when a failed engine is loaded again."""

from __future__ import annotations

from agent.engine.restart import RestartPolicy
from agent.link import Backoff, RetryPolicy


def test_reconnection_waits_at_most_a_doubling_ceiling() -> None:
    backoff = Backoff(RetryPolicy(), draw=lambda low, high: high)
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next() == 1


def test_a_minute_of_a_connection_forgets_all_trouble_and_ten_seconds_half_of_it() -> None:
    backoff = Backoff(RetryPolicy(), draw=lambda low, high: high)
    for _ in range(7):
        backoff.next()
    backoff.held(10.0)
    assert backoff.next() == 30
    backoff.held(60.0)
    assert backoff.next() == 1


def test_a_connection_that_breaks_at_once_again_and_again_is_waited_for_ever_longer() -> None:
    backoff, waits = Backoff(RetryPolicy(), draw=lambda low, high: high), []
    for _ in range(16):
        backoff.held(5.0)
        waits.append(backoff.next())
    assert waits == sorted(waits)
    assert waits[-1] > 40


def test_a_connection_of_a_year_is_no_number_too_large() -> None:
    backoff = Backoff(RetryPolicy(), draw=lambda low, high: high)
    backoff.next()
    backoff.held(365 * 86_400.0)
    assert backoff.next() == 1


def test_reconnection_jitters_down_to_nothing() -> None:
    backoff = Backoff(RetryPolicy(), draw=lambda low, high: low)
    assert [backoff.next() for _ in range(3)] == [0, 0, 0]


def test_machines_that_were_sent_away_together_do_not_come_back_together() -> None:
    for draw, seconds in ((min, 0.5), (max, 1.5)):
        assert Backoff(RetryPolicy(), draw=lambda *bounds, pick=draw: pick(bounds)).about_first() == seconds


def test_an_engine_is_loaded_again_after_growing_delays_and_then_stays_down() -> None:
    policy = RestartPolicy()
    assert [policy.delay_after_failure(float(now)) for now in range(6)] == [1, 2, 4, 8, 16, None]


def test_old_failures_are_forgotten() -> None:
    policy = RestartPolicy()
    for now in range(5):
        policy.delay_after_failure(float(now))
    assert policy.delay_after_failure(700.0) == 1
