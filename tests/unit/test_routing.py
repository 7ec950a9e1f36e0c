from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.routing import (
    Candidate,
    Choice,
    Constraints,
    Cost,
    Demand,
    Load,
    Policy,
    Reason,
    SlotState,
    capacity_of,
    choose,
    cost_of,
    could_fit,
    reasons_against,
)
from tests.support.examples import NOW, candidate, snapshot

POLICY = Policy()
DEMAND = Demand("model", prompt_tokens=400, output_tokens=200)
SHORT = Demand("model", prompt_tokens=100, output_tokens=50)
GIB_PER_TOKEN = 400_000 / 2**30


def asking(**constraints: Any) -> Demand:
    """The usual demand with constraints."""
    return msgspec.structs.replace(DEMAND, constraints=Constraints(**constraints))


def sized(size_gb: float) -> Demand:
    """The usual demand for a model of that size."""
    return msgspec.structs.replace(DEMAND, size_gb=size_gb)


def pick(
    *candidates: Candidate, demand: Demand = SHORT, policy: Policy = POLICY, size_gb: float = 0.0, seed: int = 1
) -> str:
    """The session that is chosen, or an empty text."""
    choice = choose(candidates, msgspec.structs.replace(demand, size_gb=size_gb), policy, Random(seed), now=NOW)
    return choice.candidate.snapshot.session_id if choice else ""


class TestCapacity:
    @pytest.mark.parametrize(
        ("memory_gb", "slots"),
        [(0, 2), (8, 2), (24, 2), (24.1, 4), (48, 4), (49, 6), (96, 6), (97, 8), (128, 8), (128.5, 12), (1_024, 12)],
    )
    def test_a_machine_that_reports_memory_gets_the_tier_of_its_size(self, memory_gb: float, slots: int) -> None:
        assert capacity_of(memory_gb, [], reported=True) == slots
        assert capacity_of(memory_gb, [0, 0], reported=True) == slots

    @pytest.mark.parametrize("memory_gb", [0, 8, 512])
    def test_a_machine_that_never_reported_gets_four(self, memory_gb: float) -> None:
        assert capacity_of(memory_gb, [], reported=False) == 4

    @pytest.mark.parametrize(("concurrency", "slots"), [([1], 1), ([16], 16), ([8, 8], 16), ([64], 64), ([40, 40], 64)])
    def test_an_agent_that_says_what_it_batches_is_believed_up_to_64(self, concurrency: list[int], slots: int) -> None:
        assert capacity_of(8, concurrency, reported=True) == slots

    def test_an_agent_that_says_it_for_some_models_only_is_not_believed(self) -> None:
        assert capacity_of(64, [16, 0], reported=True) == 6


REFUSALS: list[tuple[Reason, dict[str, Any], Load, Demand, float]] = [
    (Reason.MODEL_NOT_OFFERED, {"models": {"other": 1}}, Load(), DEMAND, 0.0),
    (Reason.OTHER_KIND, {"kinds": {"model": "image"}}, Load(), DEMAND, 0.0),
    (Reason.OTHER_KIND, {}, Load(), msgspec.structs.replace(DEMAND, kind="transcription"), 0.0),
    (Reason.UNTRUSTED, {"untrusted": True}, Load(), DEMAND, 0.0),
    (Reason.DRAINING, {"draining": True}, Load(), DEMAND, 0.0),
    (Reason.TRUST_TOO_LOW, {"trust_level": "self_signed"}, Load(), DEMAND, 0.0),
    (Reason.TRUST_TOO_LOW, {"trust_level": "none"}, Load(), DEMAND, 0.0),
    (Reason.TRUST_TOO_LOW, {"trust_level": "superb"}, Load(), DEMAND, 0.0),
    (Reason.PRIVATE_ONLY, {"private_only": True}, Load(), DEMAND, 0.0),
    (Reason.PRIVATE_ONLY, {"private_only": True}, Load(), asking(preferred_account="somebody else"), 0.0),
    (Reason.RUNTIME_UNVERIFIED, {"runtime_verified": False}, Load(), DEMAND, 0.0),
    (Reason.NO_ENCRYPTION_KEY, {"provider_key": ""}, Load(), DEMAND, 0.0),
    (Reason.NOT_PRIVATE, {"private": False}, Load(), DEMAND, 0.0),
    (Reason.CHALLENGE_STALE, {"challenge_passed_at": NOW - 360.5}, Load(), DEMAND, 0.0),
    (Reason.CHALLENGE_STALE, {"challenge_passed_at": 0.0}, Load(), DEMAND, 0.0),
    (Reason.FULL, {"capacity": 4}, Load(requests_all=4), DEMAND, 0.0),
    (Reason.ENGINE_FULL, {"slots": {"model": SlotState("idle", max_concurrency=2)}}, Load(2, 2), DEMAND, 0.0),
    (Reason.SLOT_UNAVAILABLE, {"slots": {"model": SlotState("crashed")}}, Load(), DEMAND, 0.0),
    (Reason.SLOT_UNAVAILABLE, {"slots": {"model": SlotState("reloading")}}, Load(), DEMAND, 0.0),
    (Reason.OVERHEATED, {"thermal_state": "critical"}, Load(), DEMAND, 0.0),
    (Reason.OUT_OF_MEMORY, {"total_memory_gb": 24.0}, Load(), DEMAND, 32.0),
    (Reason.NOT_ALLOWED, {}, Load(), asking(allowed=("C02OTHER", "another machine")), 0.0),
    (Reason.NOT_ALLOWED, {"serial": ""}, Load(), asking(allowed=("",)), 0.0),
    (Reason.NOT_THEIRS, {}, Load(), asking(only_account="somebody else"), 0.0),
    (Reason.EXCLUDED, {}, Load(), msgspec.structs.replace(DEMAND, excluded=frozenset({"session"})), 0.0),
]
"""Each gate with what closes it and nothing else."""


class TestGates:
    def test_a_machine_that_fits_has_nothing_against_it(self) -> None:
        assert reasons_against(candidate(), sized(32.0), POLICY, now=NOW) == ()

    @pytest.mark.parametrize(("reason", "changes", "load", "demand", "size_gb"), REFUSALS)
    def test_each_gate_closes_alone_and_says_why(
        self, reason: Reason, changes: dict[str, Any], load: Load, demand: Demand, size_gb: float
    ) -> None:
        refused = candidate(load, **changes)
        demand = msgspec.structs.replace(demand, size_gb=size_gb)
        assert reasons_against(refused, demand, POLICY, now=NOW) == (reason,)
        assert choose([refused], demand, POLICY, Random(1), now=NOW) is None

    def test_every_reason_is_tried_above(self) -> None:
        of_the_breaker_and_of_standings = {Reason.PUT_ASIDE, Reason.NOT_CONNECTED, Reason.MODEL_NOT_IN_CATALOG}
        assert {refusal[0] for refusal in REFUSALS} == set(Reason) - of_the_breaker_and_of_standings

    def test_all_reasons_are_named_at_once(self) -> None:
        refused = candidate(Load(requests_all=9), untrusted=True, draining=True, thermal_state="critical")
        expected = (Reason.UNTRUSTED, Reason.DRAINING, Reason.FULL, Reason.OVERHEATED)
        assert reasons_against(refused, DEMAND, POLICY, now=NOW) == expected

    @pytest.mark.parametrize(
        ("minimum", "level", "allowed"),
        [
            ("none", "none", True),
            ("none", "unheard-of", False),
            ("self_signed", "none", False),
            ("self_signed", "self_signed", True),
            ("self_signed", "hardware", True),
            ("hardware", "self_signed", False),
            ("hardware", "hardware", True),
        ],
    )
    def test_the_trust_floor_is_the_policys(self, minimum: str, level: str, allowed: bool) -> None:
        policy = Policy(minimum_trust=minimum)
        assert (reasons_against(candidate(trust_level=level), DEMAND, policy, now=NOW) == ()) is allowed

    def test_a_challenge_counts_for_exactly_six_minutes(self) -> None:
        assert reasons_against(candidate(challenge_passed_at=NOW - 360.0), DEMAND, POLICY, now=NOW) == ()

    def test_one_free_slot_is_enough(self) -> None:
        assert reasons_against(candidate(Load(requests_all=3), capacity=4), DEMAND, POLICY, now=NOW) == ()

    @pytest.mark.parametrize("state", ["running", "idle", "idle_shutdown", "", "unheard-of"])
    def test_every_other_slot_state_can_serve(self, state: str) -> None:
        machine = candidate(slots={"model": SlotState(state)})
        assert reasons_against(machine, DEMAND, POLICY, now=NOW) == ()

    def test_development_waives_the_runtime_and_nothing_else(self) -> None:
        policy = Policy(minimum_trust="none", development=True)
        assert reasons_against(candidate(runtime_verified=False), DEMAND, policy, now=NOW) == ()
        closed = candidate(
            runtime_verified=False, provider_key="", private=False, challenge_passed_at=0.0, untrusted=True
        )
        expected = (Reason.UNTRUSTED, Reason.NO_ENCRYPTION_KEY, Reason.NOT_PRIVATE, Reason.CHALLENGE_STALE)
        assert reasons_against(closed, DEMAND, policy, now=NOW) == expected


class TestMemory:
    def fits(self, tokens: int, size_gb: float, **changes: Any) -> bool:
        demand = Demand("model", tokens, 0, size_gb=size_gb)
        return reasons_against(candidate(**changes), demand, POLICY, now=NOW) == ()

    def test_weights_and_cache_must_fit_into_what_is_free(self) -> None:
        # Given 40 GiB of which 10 are in use, a model of 28 and a cache of exactly 2 GiB,
        tokens = 2 * 2**30 // 400_000
        assert self.fits(tokens, 28.0, total_memory_gb=40.0, gpu_memory_active_gb=10.0)
        # when one token more does not fit any more, then the machine is out.
        assert not self.fits(tokens + 1, 28.0, total_memory_gb=40.0, gpu_memory_active_gb=10.0)

    def test_a_loaded_model_only_needs_its_cache(self) -> None:
        loaded = {"total_memory_gb": 32.0, "gpu_memory_active_gb": 28.0}
        assert self.fits(1_000, 26.0, slots={"model": SlotState("running")}, **loaded)
        assert not self.fits(1_000, 26.0, slots={"model": SlotState("idle_shutdown")}, **loaded)
        assert not self.fits(1_000, 26.0, **loaded)

    def test_the_gate_is_open_without_a_catalog_size_or_a_known_memory(self) -> None:
        assert self.fits(10**6, 0.0, total_memory_gb=1.0)
        assert self.fits(10**6, 500.0, total_memory_gb=0.0)

    def test_the_cache_of_a_request_is_counted_up_to_a_bound(self) -> None:
        enough = 16 * 2**20 * GIB_PER_TOKEN + 0.01
        assert self.fits(10**12, 0.005, total_memory_gb=enough)

    @given(
        total_gb=st.floats(1, 256),
        active_gb=st.floats(0, 256),
        size_gb=st.floats(0, 200),
        output_tokens=st.integers(1, 600_000),
        loaded=st.booleans(),
    )
    def test_what_fits_now_could_fit_and_what_could_not_never_does(
        self, total_gb: float, active_gb: float, size_gb: float, output_tokens: int, loaded: bool
    ) -> None:
        demand = Demand("model", prompt_tokens=0, output_tokens=output_tokens, size_gb=size_gb)
        slots = {"model": SlotState("running")} if loaded else {}
        crowded = candidate(total_memory_gb=total_gb, gpu_memory_active_gb=active_gb, slots=slots)
        fits_now = Reason.OUT_OF_MEMORY not in reasons_against(crowded, demand, POLICY, now=NOW)
        emptied = candidate(total_memory_gb=total_gb, gpu_memory_active_gb=0.0)
        fits_alone = Reason.OUT_OF_MEMORY not in reasons_against(emptied, demand, POLICY, now=NOW)
        assert could_fit(crowded, demand, POLICY) == (fits_now or fits_alone)


class TestCost:
    def test_every_term_against_numbers_worked_out_by_hand(self) -> None:
        machine = candidate(
            Load(requests_all=4, requests_model=1, output_tokens_model=900),
            slots={"model": SlotState("running", num_running=2, num_waiting=1, max_tokens_potential=500)},
            decode_tps=100.0,
            prefill_tps=1_000.0,
            memory_pressure=0.5,
            cpu_usage=0.2,
            gpu_memory_active_gb=16.0,
            total_memory_gb=64.0,
            thermal_state="fair",
        )
        cost = cost_of(machine, DEMAND, POLICY)
        expected = Cost(
            slot_state=0.0,
            model_swap=0.0,
            depth=9_000.0,  # 2 running and 1 waiting are more than the 1 that we know of
            pending=3_000.0,
            backlog=13_860.0,  # (500 + 200 + 200 that nobody reported yet) tokens at 100 / 1.54 a second
            prefill=400.0,
            decode=3_080.0,
            memory_pressure=2_000.0,
            cpu=300.0,
            gpu_memory=1_250.0,
            thermal=2_000.0,
            reputation=1_000.0,  # nobody knows the machine yet
        )
        assert msgspec.structs.astuple(cost) == pytest.approx(msgspec.structs.astuple(expected))
        assert cost.total_ms == pytest.approx(35_890.0)

    def test_an_idle_loaded_machine_costs_the_request_alone(self) -> None:
        cost = cost_of(candidate(slots={"model": SlotState("running")}), DEMAND, POLICY)
        assert cost.total_ms == pytest.approx(400 + 2_000 + 1_000)

    @pytest.mark.parametrize(
        ("state", "cost_ms"),
        [("running", 0), ("idle", 0), ("", 0), ("idle_shutdown", 20_000), ("unheard-of", 2_500)],
    )
    def test_a_model_that_is_not_loaded_costs_its_loading(self, state: str, cost_ms: float) -> None:
        assert cost_of(candidate(slots={"model": SlotState(state)}), DEMAND, POLICY).slot_state == cost_ms

    def test_a_slot_that_nobody_reported_costs_a_guess(self) -> None:
        assert cost_of(candidate(slots={"other": SlotState("running")}), DEMAND, POLICY).slot_state == 2_500

    def test_speed_is_guessed_from_the_bandwidth_where_none_was_measured(self) -> None:
        guessed = cost_of(candidate(decode_tps=0.0, prefill_tps=0.0, memory_bandwidth_gbs=400.0), DEMAND, POLICY)
        assert guessed.decode == pytest.approx(1_000 * 200 / 20)
        assert guessed.prefill == pytest.approx(1_000 * 400 / 80)

    def test_a_machine_of_unknown_speed_still_has_a_cost(self) -> None:
        unknown = cost_of(candidate(decode_tps=0.0, prefill_tps=0.0, memory_bandwidth_gbs=0.0), DEMAND, POLICY)
        assert (unknown.decode, unknown.prefill) == (200_000, 100_000)

    def test_a_crowded_machine_never_gets_slower_than_a_token_a_second(self) -> None:
        crowded = candidate(decode_tps=2.0, slots={"model": SlotState("running", num_running=1_000)})
        assert cost_of(crowded, DEMAND, POLICY).decode == 200_000

    def test_our_own_count_stands_in_for_what_the_machine_has_not_reported_yet(self) -> None:
        slots = {"model": SlotState("running")}
        unseen = cost_of(candidate(Load(1, 1, 500), slots=slots), DEMAND, POLICY)
        assert (unseen.depth, unseen.backlog) == (3_000, 5_000)

    @pytest.mark.parametrize(
        ("active", "total", "share"), [(0, 64, 0), (32, 64, 0.5), (99, 64, 1), (5, 0, 0), (-1, 64, 0)]
    )
    def test_the_share_of_gpu_memory_is_clamped(self, active: float, total: float, share: float) -> None:
        cost = cost_of(candidate(gpu_memory_active_gb=float(active), total_memory_gb=float(total)), DEMAND, POLICY)
        assert cost.gpu_memory == 5_000 * share

    @pytest.mark.parametrize(("state", "cost_ms"), [("nominal", 0), ("fair", 2_000), ("serious", 8_000), ("odd", 0)])
    def test_heat_costs(self, state: str, cost_ms: float) -> None:
        assert cost_of(candidate(thermal_state=state), DEMAND, POLICY).thermal == cost_ms

    @given(
        st.builds(Load, *[st.integers(0, 10**5)] * 3),
        st.builds(SlotState, st.sampled_from(["running", "idle_shutdown"]), *[st.integers(0, 10**5)] * 3),
        st.floats(0, 500),
        st.integers(0, 10**6),
        st.integers(0, 10**5),
    )
    def test_no_term_is_negative_or_endless(
        self, load: Load, slot: SlotState, decode_tps: float, prompt: int, output: int
    ) -> None:
        machine = candidate(load, slots={"model": slot}, decode_tps=decode_tps)
        terms = msgspec.structs.astuple(cost_of(machine, Demand("model", prompt, output), POLICY))
        assert all(math.isfinite(term) and term >= 0 for term in terms)

    @given(st.integers(0, 50), st.integers(0, 50))
    def test_more_requests_in_flight_never_make_a_machine_cheaper(self, requests: int, more: int) -> None:
        def total(count: int) -> float:
            return cost_of(candidate(Load(count, count, 256 * count)), DEMAND, POLICY).total_ms

        assert total(requests + more) >= total(requests)


class TestScenarios:
    def test_a_machine_of_24_gb_is_never_given_a_model_of_32(self) -> None:
        assert pick(candidate(total_memory_gb=24.0), size_gb=32.0) == ""

    def test_a_busy_machine_that_fits_wins_over_an_idle_one_that_does_not(self) -> None:
        small = candidate(session_id="small", total_memory_gb=24.0)
        busy = candidate(Load(3, 3, 600), session_id="busy", total_memory_gb=64.0)
        assert pick(small, busy, size_gb=32.0) == "busy"

    def test_a_machine_with_the_model_loaded_needs_no_second_room_for_the_weights(self) -> None:
        loaded = candidate(
            slots={"model": SlotState("running")}, total_memory_gb=36.0, gpu_memory_active_gb=30.0, session_id="loaded"
        )
        assert pick(loaded, size_gb=28.0) == "loaded"

    def test_without_a_catalog_size_memory_decides_nothing(self) -> None:
        assert pick(candidate(total_memory_gb=8.0, session_id="small")) == "small"

    def test_the_thirteenth_request_on_a_large_machine_goes_elsewhere(self) -> None:
        slots = capacity_of(192.0, [], reported=True)
        large = candidate(Load(12, 0, 0), session_id="large", capacity=slots, decode_tps=500.0)
        slow = candidate(session_id="slow", decode_tps=1.0, prefill_tps=1.0)
        assert pick(large, slow) == "slow"
        room = msgspec.structs.replace(large, load=Load(11, 0, 0))
        assert pick(room, slow) == "large"

    def test_a_fast_machine_with_a_request_in_flight_loses_to_an_idle_slower_one(self) -> None:
        fast = candidate(Load(1, 1, 50), session_id="fast", decode_tps=200.0)
        slow = candidate(session_id="slow", decode_tps=50.0)
        assert pick(fast, slow) == "slow"

    def test_a_hundred_requests_over_three_idle_machines_are_shared(self) -> None:
        machines = [candidate(session_id=f"{speed} tps", decode_tps=float(speed)) for speed in (60, 80, 120)]
        random = Random(2026)
        served: Counter[str] = Counter()
        for _ in range(100):
            choice = choose(machines, SHORT, POLICY, random, now=NOW)
            assert choice is not None
            served[choice.candidate.snapshot.session_id] += 1
        assert len(served) == 3
        assert max(served.values()) <= 70

    def test_a_machine_that_decodes_eight_requests_loses_to_an_idle_small_one(self) -> None:
        large = candidate(
            Load(8, 8, 8 * 256),
            session_id="large",
            capacity=12,
            decode_tps=200.0,
            slots={"model": SlotState("running", num_running=8, max_tokens_potential=8 * 256)},
        )
        small = candidate(session_id="small", decode_tps=20.0, slots={"model": SlotState("running")})
        assert pick(large, small) == "small"


class TestChoice:
    def test_without_an_eligible_machine_there_is_no_choice(self) -> None:
        assert choose([], DEMAND, POLICY, Random(1), now=NOW) is None
        assert pick(candidate(untrusted=True)) == ""

    def test_the_cheapest_wins_when_nobody_is_near(self) -> None:
        cheap = candidate(session_id="cheap", slots={"model": SlotState("running")})
        dear = candidate(session_id="dear", slots={"model": SlotState("idle_shutdown")})
        assert pick(dear, cheap) == pick(cheap, dear) == "cheap"

    def test_near_the_best_the_shorter_queue_wins(self) -> None:
        # Given a machine that is cheaper by 2.5 s but has one request for the model waiting,
        loaded = {"model": SlotState("running")}
        queued = candidate(Load(1, 1, 0), session_id="queued", slots=loaded, prefill_tps=10**9, decode_tps=10**9)
        empty = candidate(
            session_id="empty", slots=loaded, prefill_tps=10**9, decode_tps=500.0, thermal_state="serious"
        )
        assert cost_of(empty, SHORT, POLICY).total_ms > cost_of(queued, SHORT, POLICY).total_ms
        # when their difference is outside of 3 s, cost decides; inside of it, the queue.
        assert pick(queued, empty) == "queued"
        assert pick(queued, empty, policy=Policy(near_tie_ms=6_000.0)) == "empty"

    def test_with_equal_queues_the_machine_with_fewer_requests_wins(self) -> None:
        busy = candidate(Load(requests_all=2), session_id="busy", decode_tps=500.0)
        calm = candidate(Load(requests_all=1), session_id="calm", decode_tps=100.0)
        assert pick(busy, calm) == pick(calm, busy) == "calm"

    def test_between_equals_chance_decides_and_a_seed_repeats_it(self) -> None:
        machines = [candidate(session_id=str(number)) for number in range(5)]
        picks = [pick(*machines, seed=seed) for seed in range(60)]
        assert set(picks) == {"0", "1", "2", "3", "4"}
        assert picks == [pick(*machines, seed=seed) for seed in range(60)]

    def test_a_session_that_was_just_passed_over_is_not_chosen_again(self) -> None:
        machines = [candidate(session_id="one"), candidate(session_id="two")]
        choice = choose(machines, SHORT, POLICY, Random(1), now=NOW, passed_over={"one"})
        assert choice is not None
        assert choice.candidate.snapshot.session_id == "two"
        assert choose(machines, SHORT, POLICY, Random(1), now=NOW, passed_over={"one", "two"}) is None

    @given(
        st.lists(
            st.tuples(
                st.floats(1, 500),
                st.integers(0, 6),
                st.booleans(),
                st.sampled_from(["nominal", "fair", "serious", "critical"]),
            ),
            max_size=6,
        ),
        st.integers(0, 2**32),
        st.randoms(use_true_random=False),
    )
    def test_the_choice_is_eligible_and_near_the_best_in_any_order(
        self, machines: list[tuple[float, int, bool, str]], seed: int, order: Random
    ) -> None:
        candidates = [
            candidate(
                Load(busy, busy, 100 * busy),
                session_id=str(number),
                decode_tps=speed,
                draining=draining,
                thermal_state=heat,
            )
            for number, (speed, busy, draining, heat) in enumerate(machines)
        ]
        eligible = [one for one in candidates if not reasons_against(one, SHORT, POLICY, now=NOW)]
        choice = choose(candidates, SHORT, POLICY, Random(seed), now=NOW)
        assert (choice is None) is (not eligible)
        if choice is not None:
            best = min(cost_of(one, SHORT, POLICY).total_ms for one in eligible)
            assert choice.candidate in eligible
            assert choice.cost == cost_of(choice.candidate, SHORT, POLICY)
            assert choice.cost.total_ms <= best + POLICY.near_tie_ms
            order.shuffle(candidates)
            again = choose(candidates, SHORT, POLICY, Random(seed), now=NOW)
            assert again is not None
            assert _rank(again) == _rank(choice)


def _rank(choice: Choice) -> tuple[float, int]:
    return choice.cost.depth, choice.candidate.load.requests_all


def test_a_snapshot_survives_the_fleet_table() -> None:
    machine = snapshot(slots={"model": SlotState("running", 1, 2, 3)})
    assert msgspec.json.decode(msgspec.json.encode(machine), type=type(machine)) == machine
