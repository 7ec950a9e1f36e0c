from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.routing import (
    TRUST_RANK,
    Candidate,
    Constraints,
    Cost,
    Demand,
    Health,
    Load,
    Policy,
    Reason,
    SlotState,
    Standing,
    Vacancy,
    assess,
    choose,
    cost_of,
    describe,
    expected_wait_seconds,
    rank_of,
    reasons_against,
    retry_after_seconds,
    shape_of,
    standing_of,
    whom_to_wake,
)
from domain.routing.narrowing import SHAPES, STEP_MS
from tests.support.examples import NOW, candidate, snapshot

POLICY = Policy()
DEMAND = Demand("model", 400, 200)
LOADED = {"model": SlotState("running")}

machines = st.builds(
    lambda load, slot, tps, memory, heat, aside, own: Candidate(
        snapshot(
            session_id=f"{tps}-{memory}-{heat}-{aside}-{own}",
            account_id="me" if own else "somebody",
            decode_tps=tps,
            total_memory_gb=memory,
            gpu_memory_active_gb=memory / 2,
            thermal_state=heat,
            slots={"model": slot},
        ),
        load,
        Health(failures_in_row=3, put_aside_until=NOW + 60) if aside else Health(),
    ),
    st.builds(Load, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5_000)),
    st.builds(SlotState, st.sampled_from(["running", "idle_shutdown", "crashed"]), st.integers(0, 4)),
    st.floats(1, 500),
    st.floats(8, 512),
    st.sampled_from(["nominal", "fair", "serious", "critical"]),
    st.booleans(),
    st.booleans(),
)
demands = st.builds(
    lambda prompt, output, size_gb, only, preferred: Demand(
        "model",
        prompt,
        output,
        size_gb=size_gb,
        constraints=Constraints(only_account="me" if only else "", preferred_account="me" if preferred else ""),
    ),
    st.integers(0, 50_000),
    st.integers(1, 8_192),
    st.floats(0, 64),
    st.booleans(),
    st.booleans(),
)


owned = st.builds(
    lambda own, private_only, trust, named: candidate(
        session_id=f"{own}-{private_only}-{trust}-{named}",
        account_id={True: "me", False: "somebody", None: ""}[own],
        serial="named" if named else "",
        private_only=private_only,
        trust_level=trust,
    ),
    st.sampled_from([True, False, None]),
    st.booleans(),
    st.sampled_from(["none", "self_signed", "hardware", "superb"]),
    st.booleans(),
)
constraints = st.builds(
    lambda only, preferred, named, trust: Constraints(
        only_account=only,
        preferred_account=preferred,
        allowed=("named",) if named else (),
        minimum_trust=trust,
    ),
    st.sampled_from(["", "me"]),
    st.sampled_from(["", "me"]),
    st.booleans(),
    st.sampled_from(["none", "self_signed"]),
)


class TestOwners:
    @given(st.lists(owned, max_size=6), constraints, st.sampled_from(["none", "self_signed", "hardware"]))
    def test_nobody_else_gets_a_private_machine_or_one_below_the_floor(
        self, candidates: list[Candidate], asked: Constraints, minimum: str
    ) -> None:
        policy = Policy(minimum_trust=minimum, development=True)
        demand = msgspec.structs.replace(DEMAND, constraints=asked)
        for seed in range(4):
            choice = choose(candidates, demand, policy, Random(seed), now=NOW)
            if choice is None:
                continue
            chosen = choice.candidate.snapshot
            below = TRUST_RANK.get(chosen.trust_level, -1) < TRUST_RANK[minimum]
            if chosen.private_only or below:
                assert chosen.account_id == "me" == asked.own_account
            assert TRUST_RANK[chosen.trust_level] >= TRUST_RANK[asked.minimum_trust]

    @given(owned, st.sampled_from(["none", "self_signed", "hardware"]))
    def test_an_owner_gets_whatever_is_the_owner_s(self, one: Candidate, minimum: str) -> None:
        policy = Policy(minimum_trust=minimum, development=True)
        demand = msgspec.structs.replace(DEMAND, constraints=Constraints(only_account="me"))
        is_mine = one.snapshot.account_id == "me" and one.snapshot.trust_level in TRUST_RANK
        assert (reasons_against(one, demand, policy, now=NOW) == ()) is is_mine

    @given(owned, st.sampled_from(["none", "self_signed", "hardware"]))
    def test_every_other_gate_stays_for_an_owner(self, one: Candidate, minimum: str) -> None:
        machine = msgspec.structs.replace(
            one.snapshot, account_id="me", trust_level="none", provider_key="", private=False, thermal_state="critical"
        )
        demand = msgspec.structs.replace(DEMAND, constraints=Constraints(preferred_account="me"))
        closed = reasons_against(Candidate(machine), demand, Policy(minimum_trust=minimum), now=NOW)
        assert {Reason.NO_ENCRYPTION_KEY, Reason.NOT_PRIVATE, Reason.OVERHEATED} <= set(closed)
        assert not {Reason.TRUST_TOO_LOW, Reason.PRIVATE_ONLY} & set(closed)


class TestWaking:
    def test_a_slot_goes_to_the_first_whom_it_can_serve(self) -> None:
        # Given a machine with two engines, of which one is full,
        one = snapshot(
            capacity=4,
            models={"text": 1, "image": 1},
            slots={"text": SlotState("running", max_concurrency=3), "image": SlotState("running", max_concurrency=1)},
            private_only=True,
        )
        vacancy = Vacancy(one, Health(), 2, {"text": 1, "image": 1})
        mine = Constraints(only_account="owner")
        line = [
            Waiting("image first", Demand("image", 1, 1, constraints=mine)),
            Waiting("of somebody else", Demand("text", 1, 1)),
            Waiting("text first", Demand("text", 1, 1, constraints=mine)),
            Waiting("image second", Demand("image", 1, 1, constraints=mine)),
            Waiting("text second", Demand("text", 1, 1, constraints=mine)),
            Waiting("text third", Demand("text", 1, 1, constraints=mine)),
        ]

        woken = whom_to_wake(line, [vacancy], POLICY, now=NOW)

        assert [one.name for one in woken] == ["text first", "text second"]

    @given(st.lists(machines, max_size=5), st.lists(demands, max_size=8))
    def test_nobody_sleeps_before_a_slot_that_somebody_woken_does_not_need(
        self, candidates: list[Candidate], asked: list[Demand]
    ) -> None:
        vacancies = [
            Vacancy(one.snapshot, one.health, one.load.requests_all, {"model": one.load.requests_model})
            for one in candidates
        ]
        line = [Waiting(str(number), demand) for number, demand in enumerate(asked)]
        woken = whom_to_wake(line, vacancies, POLICY, now=NOW)
        assert len(woken) <= sum(max(0, one.slots) for one in vacancies)
        assert [one for one in line if one in woken] == woken
        for waiter in woken:
            wanted = msgspec.structs.replace(waiter.demand, nobody_else=True)
            assert any(not reasons_against(one, wanted, POLICY, now=NOW) for one in candidates)
        if line and not woken:
            first = msgspec.structs.replace(line[0].demand, nobody_else=True)
            assert all(reasons_against(one, first, POLICY, now=NOW) for one in candidates)


class Waiting(NamedTuple):
    name: str
    demand: Demand

    def demand_at(self, now: float) -> Demand:
        return self.demand


class TestChoice:
    @given(st.lists(machines, max_size=8), demands, st.integers(0, 99))
    def test_whoever_is_chosen_is_eligible_and_somebody_is_when_anybody_is(
        self, candidates: list[Candidate], demand: Demand, seed: int
    ) -> None:
        eligible = [one for one in candidates if not reasons_against(one, demand, POLICY, now=NOW)]
        choice = choose(candidates, demand, POLICY, Random(seed), now=NOW)
        assert (choice is None) == (not eligible)
        if choice is not None:
            assert choice.candidate in eligible
            own = [one for one in eligible if one.snapshot.account_id == "me"]
            if demand.constraints.preferred_account and own:
                assert choice.candidate in own

    @given(machines, demands, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9_000))
    def test_more_load_of_any_kind_never_makes_a_machine_cheaper(
        self, one: Candidate, demand: Demand, of_model: int, others: int, tokens: int
    ) -> None:
        before = one.load
        busier = Load(
            before.requests_all + of_model + others,
            before.requests_model + of_model,
            before.output_tokens_model + tokens,
        )
        loaded = msgspec.structs.replace(one, load=busier)
        assert cost_of(loaded, demand, POLICY).total_ms >= cost_of(one, demand, POLICY).total_ms

    def test_a_hundred_choices_among_near_ties_spread_over_all_of_them(self) -> None:
        near = [candidate(session_id=str(number), decode_tps=90.0 + number) for number in range(10)]
        random = Random(7)
        chosen = [choose(near, DEMAND, POLICY, random, now=NOW) for _ in range(100)]
        counts = [sum(one is not None and one.candidate is machine for one in chosen) for machine in near]
        assert min(counts) >= 3
        assert max(counts) <= 25


class TestModelSwap:
    """A machine of 32 GiB with a model of 20 loaded, asked for another one of 20 that it loads on demand."""

    def machine(self, load: Load | None = None, **other: int) -> Candidate:
        slots = {"model": SlotState("idle_shutdown"), "other": SlotState("running", **other)}
        models = {"model": 20 * 2**30, "other": 20 * 2**30}
        return candidate(load, slots=slots, models=models, total_memory_gb=32.0, gpu_memory_active_gb=20.0)

    def test_an_idle_model_is_given_up_for_another_at_a_stated_cost(self) -> None:
        demand = msgspec.structs.replace(DEMAND, size_gb=20.0)
        assert reasons_against(self.machine(), demand, POLICY, now=NOW) == ()
        assert cost_of(self.machine(), demand, POLICY).model_swap == 5_000

    def test_a_model_at_work_is_not_given_up(self) -> None:
        demand = msgspec.structs.replace(DEMAND, size_gb=20.0)
        for busy in (self.machine(num_running=1), self.machine(num_waiting=1), self.machine(Load(1, 0, 0))):
            assert reasons_against(busy, demand, POLICY, now=NOW) == (Reason.OUT_OF_MEMORY,)

    def test_a_machine_that_does_not_load_on_demand_gives_nothing_up(self) -> None:
        fixed = candidate(
            slots={"other": SlotState("running")},
            models={"model": 1, "other": 20 * 2**30},
            total_memory_gb=32.0,
            gpu_memory_active_gb=20.0,
        )
        demand = msgspec.structs.replace(DEMAND, size_gb=20.0)
        assert reasons_against(fixed, demand, POLICY, now=NOW) == (Reason.OUT_OF_MEMORY,)

    def test_a_model_that_fits_beside_the_other_costs_no_swap(self) -> None:
        demand = msgspec.structs.replace(DEMAND, size_gb=8.0)
        assert cost_of(self.machine(), demand, POLICY).model_swap == 0


class TestConstraints:
    def allowed(self, constraints: Constraints, **facts: object) -> bool:
        demand = msgspec.structs.replace(DEMAND, constraints=constraints)
        return reasons_against(candidate(**facts), demand, Policy(minimum_trust="none"), now=NOW) == ()

    def test_a_machine_is_named_by_its_serial_number_or_its_id(self) -> None:
        assert self.allowed(Constraints(allowed=("C02EXAMPLE01",)), serial="C02EXAMPLE01")
        assert self.allowed(Constraints(allowed=("x", "machine")))
        assert not self.allowed(Constraints(allowed=("C02EXAMPLE02",)), serial="C02EXAMPLE01")

    @pytest.mark.parametrize(("level", "enough"), [("none", False), ("self_signed", True), ("hardware", True)])
    def test_a_request_can_ask_for_more_trust(self, level: str, enough: bool) -> None:
        assert self.allowed(Constraints(minimum_trust="self_signed"), trust_level=level) is enough

    def test_a_request_cannot_lower_the_network_s_floor(self) -> None:
        demand = msgspec.structs.replace(DEMAND, constraints=Constraints(minimum_trust="none"))
        low = candidate(trust_level="self_signed")
        assert reasons_against(low, demand, POLICY, now=NOW) == (Reason.TRUST_TOO_LOW,)

    def test_one_s_own_machines_come_first_and_others_when_there_are_none(self) -> None:
        own = candidate(Load(2, 2, 900), session_id="own", account_id="me")
        other = candidate(session_id="other", slots=LOADED)
        demand = msgspec.structs.replace(DEMAND, constraints=Constraints(preferred_account="me"))
        for candidates, expected in (([other, own], own), ([other], other)):
            choice = choose(candidates, demand, POLICY, Random(1), now=NOW)
            assert choice is not None
            assert choice.candidate is expected


class TestExplanations:
    @given(machines, demands)
    def test_the_terms_that_are_shown_add_up_to_the_total(self, one: Candidate, demand: Demand) -> None:
        cost = cost_of(one, demand, POLICY)
        assert list(cost.terms()) == list(Cost.__struct_fields__)
        assert math.isclose(sum(cost.terms().values()), cost.total_ms)

    def test_a_line_names_the_machine_every_term_and_every_closed_gate(self) -> None:
        good = candidate(slots=LOADED)
        bad = candidate(untrusted=True, thermal_state="critical", slots=LOADED)
        lines = [describe(one) for one in assess([bad, good], DEMAND, POLICY, now=NOW)]
        assert lines[0] == (
            "machine machine: eligible, 3400 ms = slot_state 0 + model_swap 0 + depth 0 + pending 0 + backlog 0 + "
            "prefill 400 + decode 2000 + memory_pressure 0 + cpu 0 + gpu_memory 0 + thermal 0 + reputation 1000"
        )
        assert "not eligible (untrusted, overheated)" in lines[1]

    def test_every_reason_has_a_code_a_sentence_and_a_fix(self) -> None:
        assert all(reason.value and reason.says and reason.fix for reason in Reason)
        assert len({reason.says for reason in Reason}) == len(Reason)


class TestStanding:
    def stand(
        self, one: Candidate, sizes: dict[str, float | None] | None = None, loads: dict[str, Load] | None = None
    ) -> Standing:
        return standing_of(one, POLICY, now=NOW, size_of=(sizes or {"model": 0.0, "other": 0.0}).get, loads=loads)

    def test_a_good_machine_is_routable_and_needs_no_advice(self) -> None:
        standing = self.stand(candidate())
        assert standing.routable
        assert standing.takes("model")
        assert standing.advice() == []

    def test_a_reason_of_one_model_does_not_concern_the_others(self) -> None:
        slots = {"model": SlotState("crashed"), "other": SlotState("running")}
        standing = self.stand(candidate(slots=slots, models={"model": 1, "other": 1}))
        assert standing.routable
        assert (standing.takes("model"), standing.takes("other")) == (False, True)
        assert [advice.partition(":")[0] for advice in standing.advice()] == ["model"]

    def test_a_model_outside_of_the_catalog_is_named(self) -> None:
        standing = self.stand(candidate(), {"model": None})
        assert standing.models[0].reasons == (Reason.MODEL_NOT_IN_CATALOG,)
        assert not standing.routable

    def test_a_model_that_does_not_fit_is_named_with_its_machine(self) -> None:
        standing = self.stand(candidate(total_memory_gb=16.0), {"model": 30.0})
        assert standing.models[0].reasons == (Reason.OUT_OF_MEMORY,)

    def test_a_full_machine_is_not_routable_now_and_takes_work_again_without_advice(self) -> None:
        full = Load(4, 4, 100)
        standing = self.stand(candidate(full), loads={"model": full})
        assert standing.reasons == (Reason.FULL,)
        assert standing.takes("model")
        assert standing.advice() == []

    def test_a_machine_that_is_put_aside_is_told_and_stays_in_the_table(self) -> None:
        aside = Candidate(snapshot(), health=Health(failures_in_row=3, put_aside_until=NOW + 9))
        standing = self.stand(aside)
        assert standing.reasons == (Reason.PUT_ASIDE,)
        assert standing.takes("model")
        assert len(standing.advice()) == 1

    def test_a_machine_without_models_is_told_so(self) -> None:
        assert self.stand(candidate(models={})).reasons == (Reason.MODEL_NOT_OFFERED,)


class TestNarrowing:
    @given(machines, st.sampled_from(SHAPES))
    def test_the_index_has_the_cost_of_an_idle_machine_for_its_shapes(
        self, one: Candidate, shape: tuple[int, int]
    ) -> None:
        idle = Candidate(snapshot(decode_tps=one.snapshot.decode_tps, slots=LOADED), health=one.health)
        rank = rank_of(idle, "model", 0.0, POLICY)
        cost = cost_of(idle, Demand("model", *shape), POLICY)
        assert abs(rank[SHAPES.index(shape)] - cost.total_ms) <= STEP_MS / 2 + 1e-6

    @given(machines, st.sampled_from(SHAPES), st.sampled_from([0.0, 4.0, 30.0, 70.0]))
    def test_the_index_knows_every_term_of_a_machine_that_has_work_but_those_of_its_queue(
        self, one: Candidate, shape: tuple[int, int], size_gb: float
    ) -> None:
        idle = Candidate(one.snapshot, health=one.health)
        cost = cost_of(idle, Demand("model", *shape, size_gb=size_gb), POLICY)
        known = rank_of(one, "model", size_gb, POLICY)[SHAPES.index(shape)]
        assert abs(known - (cost.total_ms - cost.depth - cost.backlog)) <= STEP_MS / 2 + 1e-6

    @given(machines, demands)
    def test_the_index_never_leaves_out_a_machine_for_its_memory_that_fits(
        self, one: Candidate, demand: Demand
    ) -> None:
        from domain.routing.gates import kv_gb

        if Reason.OUT_OF_MEMORY not in reasons_against(one, demand, POLICY, now=NOW):
            needed = kv_gb(demand.prompt_tokens + demand.output_tokens, POLICY) if demand.size_gb > 0 else -1e6
            assert rank_of(one, "model", demand.size_gb, POLICY).room_gb >= needed

    @pytest.mark.parametrize(
        ("prompt", "output", "shape"), [(10, 10, 0), (500, 256, 1), (900, 300, 1), (8_000, 900, 2), (9_000, 50, 3)]
    )
    def test_a_request_takes_the_order_of_the_nearest_size(self, prompt: int, output: int, shape: int) -> None:
        assert shape_of(Demand("model", prompt, output)) == shape


class TestWaiting:
    def test_the_wait_is_the_place_times_the_rate_at_which_slots_come_free(self) -> None:
        assert expected_wait_seconds(1, 4, 20.0) == 5.0
        assert expected_wait_seconds(8, 4, 20.0) == 40.0

    def test_what_nobody_knows_is_not_guessed(self) -> None:
        assert expected_wait_seconds(1, 4, None) is None
        assert expected_wait_seconds(1, 0, 20.0) is None

    @pytest.mark.parametrize(("wait", "retry"), [(0.1, 2), (7.2, 8), (500.0, 30)])
    def test_whoever_is_refused_is_told_when_to_come_back(self, wait: float, retry: int) -> None:
        assert retry_after_seconds(3, wait) == retry

    @pytest.mark.parametrize(("position", "retry"), [(0, 2), (3, 9), (11, 30)])
    def test_without_an_estimate_it_is_three_seconds_for_each_place(self, position: int, retry: int) -> None:
        assert retry_after_seconds(position, None) == retry
