from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.routing import (
    Candidate,
    Demand,
    Health,
    Load,
    Observation,
    ObservationKind,
    Policy,
    Reason,
    breaker_state,
    choose,
    cost_of,
    observe,
    reasons_against,
    reputation,
)
from tests.support.examples import NOW, candidate, snapshot

POLICY = Policy()
DEMAND = Demand("model", 100, 50)
KINDS: tuple[ObservationKind, ...] = ("job_done", "job_failed", "challenge_passed", "challenge_failed", "uptime")


def failed(times: int, *, at: float = NOW, health: Health | None = None) -> Health:
    """The health after so many failures in a row at one time."""
    health = health or Health()
    for _ in range(times):
        health = observe(health, Observation("job_failed", at), POLICY)
    return health


def is_put_aside(health: Health, *, now: float, in_flight: int = 0) -> bool:
    machine = Candidate(snapshot(challenge_passed_at=now), Load(in_flight), health)
    return Reason.PUT_ASIDE in reasons_against(machine, DEMAND, POLICY, now=now)


class TestReputation:
    def test_a_machine_that_nobody_knows_is_neutral(self) -> None:
        assert reputation(Health()) == pytest.approx(0.5)

    def test_every_part_against_numbers_worked_out_by_hand(self) -> None:
        health = Health(
            jobs_done=3, jobs_failed=1, answer_ms=3 * 5_500.0, challenges_passed=9, challenges_failed=1,
            uptime_seconds=43_200.0,
        )  # fmt: skip
        assert reputation(health) == pytest.approx(0.4 * 0.75 + 0.3 * 0.5 + 0.2 * 0.9 + 0.1 * 0.5)

    @pytest.mark.parametrize(("answer_ms", "speed"), [(500, 1.0), (1_000, 1.0), (5_500, 0.5), (10_000, 0), (60_000, 0)])
    def test_speed_runs_from_one_second_to_ten(self, answer_ms: float, speed: float) -> None:
        assert reputation(Health(jobs_done=1, answer_ms=answer_ms)) == pytest.approx(0.4 + 0.15 + 0.1 + 0.1 * speed)

    def test_a_silence_of_more_than_two_minutes_is_no_uptime(self) -> None:
        health = observe(Health(), Observation("uptime", NOW, 120.0), POLICY)
        assert health.uptime_seconds == 120
        assert observe(health, Observation("uptime", NOW, 120.5), POLICY) == health

    def test_it_is_a_stated_term_of_the_cost(self) -> None:
        good, bad = Health(jobs_done=1, challenges_passed=1, uptime_seconds=1e6), Health(jobs_failed=1)
        costs = [cost_of(Candidate(snapshot(), health=health), DEMAND, POLICY) for health in (good, bad)]
        assert costs[0].reputation == pytest.approx(0.0)
        assert costs[1].reputation == pytest.approx(2_000 * (1 - reputation(bad)))
        assert costs[1].total_ms - costs[0].total_ms == pytest.approx(costs[1].reputation)

    @given(st.lists(st.builds(Observation, st.sampled_from(KINDS), st.just(NOW), st.floats(0, 1e7)), max_size=30))
    def test_it_stays_between_0_and_1_whatever_is_seen(self, seen: list[Observation]) -> None:
        health = Health()
        for one in seen:
            health = observe(health, one, POLICY)
        assert 0.0 <= reputation(health) <= 1.0
        assert health.jobs_done + health.jobs_failed == sum(one.kind.startswith("job") for one in seen)


class TestCircuitBreaker:
    def test_two_failures_in_a_row_are_bad_luck_and_three_put_a_machine_aside(self) -> None:
        assert not is_put_aside(failed(2), now=NOW)
        assert is_put_aside(failed(3), now=NOW)

    def test_a_success_in_between_begins_the_count_again(self) -> None:
        once_good = observe(failed(2), Observation("job_done", NOW, 100.0), POLICY)
        assert not is_put_aside(failed(2, health=once_good), now=NOW)

    def test_after_its_time_one_request_at_a_time_probes_the_machine(self) -> None:
        health = failed(3)
        assert is_put_aside(health, now=NOW + 14.9)
        assert not is_put_aside(health, now=NOW + 15.0)
        assert is_put_aside(health, now=NOW + 15.0, in_flight=1)

    def test_each_failed_probe_doubles_the_time_up_to_five_minutes(self) -> None:
        waits, health, now = [], failed(2), NOW
        for _ in range(7):
            health = failed(1, at=now, health=health)
            waits.append(health.put_aside_until - now)
            now = health.put_aside_until
        assert waits == [15, 30, 60, 120, 240, 300, 300]

    def test_its_state_has_a_name(self) -> None:
        health = failed(3)
        assert breaker_state(failed(2), now=NOW, policy=POLICY) == "closed"
        assert breaker_state(health, now=NOW + 14, policy=POLICY) == "open"
        assert breaker_state(health, now=NOW + 15, policy=POLICY) == "half_open"

    def test_a_probe_that_succeeds_closes_it(self) -> None:
        healed = observe(failed(9), Observation("job_done", NOW + 400, 100.0), POLICY)
        assert not is_put_aside(healed, now=NOW + 400, in_flight=3)
        assert healed.jobs_failed == 9

    def test_a_black_hole_is_left_for_a_busy_machine(self) -> None:
        # Given a machine that fails at once, and so always looks idle, and a good one with work,
        black_hole = Candidate(snapshot(session_id="black hole"), health=failed(3))
        good = candidate(Load(3, 3, 3_000), session_id="good")
        choice = choose([black_hole, good], DEMAND, POLICY, Random(1), now=NOW)
        assert choice is not None
        assert choice.candidate is good

    def test_when_nobody_else_is_left_it_is_asked_all_the_same(self) -> None:
        alone = Candidate(snapshot(), health=failed(5))
        assert choose([alone], DEMAND, POLICY, Random(1), now=NOW) is None
        desperate = msgspec.structs.replace(DEMAND, nobody_else=True)
        assert choose([alone], desperate, POLICY, Random(1), now=NOW) is not None
