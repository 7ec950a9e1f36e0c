"""A scheduler that is asked often reads the index of machines once in a while, and still spreads what it gives out."""

from __future__ import annotations

import time
from collections import Counter
from random import Random
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from adapters.scheduler import recent
from adapters.scheduler.decision import Decision
from adapters.scheduler.fleet import Narrowed, Supply
from domain.routing import Candidate, Demand, Policy
from tests.support.examples import candidate

GATEWAY = UUID(int=7)
DEMAND = Demand("model", 100, 200)


class Index:
    """The fleet table as far as a decision needs it; counts how often it is read."""

    def __init__(self, *machines: Candidate) -> None:
        self.machines = list(machines)
        self.read = 0

    def cheapest(self, demand: Demand, policy: Policy, gateway_id: UUID | None) -> Narrowed:
        self.read += 1
        return Narrowed(list(self.machines), complete=True)

    def supply(self, demand: Demand, policy: Policy, gateway_id: UUID | None) -> Supply:
        return Supply(len(self.machines), len(self.machines), 0, None)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recent, "time", clock)
    return clock


def decision_on(index: Index, seconds: float = 1.0) -> Decision:
    return Decision(index, Policy(), Random(1), relayed=True, reuse_seconds=seconds)  # type: ignore[arg-type]


def taken(decision: Decision, demand: Demand = DEMAND) -> str:
    """The session that a request gets and claims."""
    choice = decision.choose(demand, GATEWAY)
    assert choice is not None
    session_id = choice.candidate.snapshot.session_id
    decision.count_claim(session_id, demand.model, demand.output_tokens)
    return session_id


def machines(number: int) -> list[Candidate]:
    return [candidate(session_id=str(uuid4()), challenge_passed_at=time.time()) for _ in range(number)]


def test_the_index_is_read_once_in_its_time(clock: Clock) -> None:
    index = Index(*machines(2))
    decision = decision_on(index)
    for _ in range(3):
        taken(decision)
    assert index.read == 1

    clock.now += 1.0
    taken(decision)
    assert index.read == 2


def test_what_it_gave_out_meanwhile_is_counted_in(clock: Clock) -> None:
    decision = decision_on(Index(*machines(4)))
    assert set(Counter(taken(decision) for _ in range(8)).values()) == {2}


def test_a_claim_counts_for_requests_of_other_sizes_too(clock: Clock) -> None:
    decision = decision_on(Index(*machines(2)))
    long = msgspec.structs.replace(DEMAND, output_tokens=3_000)
    decision.choose(DEMAND, GATEWAY)
    decision.choose(long, GATEWAY)

    assert taken(decision) != taken(decision, long)


def test_other_models_sizes_and_floors_of_trust_have_pages_of_their_own(clock: Clock) -> None:
    index = Index(*machines(2))
    decision = decision_on(index)
    asked = [
        DEMAND,
        msgspec.structs.replace(DEMAND, output_tokens=100_000),
        msgspec.structs.replace(
            DEMAND, constraints=msgspec.structs.replace(DEMAND.constraints, minimum_trust="hardware")
        ),
        msgspec.structs.replace(DEMAND, model="another"),
    ]
    for demand in asked:
        decision.choose(demand, GATEWAY)
    assert index.read >= len(asked)


def test_a_machine_that_left_is_not_offered_after_a_claim_of_it_failed(clock: Clock) -> None:
    gone, there = machines(2)
    index = Index(gone)
    decision = decision_on(index)
    taken(decision)
    index.machines = [there]

    choice = decision.choose(DEMAND, GATEWAY, passed_over={gone.snapshot.session_id})
    assert choice is not None
    assert choice.candidate.snapshot.session_id == there.snapshot.session_id
    assert taken(decision) == there.snapshot.session_id


def test_after_a_failure_the_index_is_read_again(clock: Clock) -> None:
    first, second = machines(2)
    index = Index(first)
    decision = decision_on(index)
    taken(decision)
    index.machines.append(second)

    again = msgspec.structs.replace(DEMAND, excluded=frozenset({first.snapshot.session_id}))
    assert taken(decision, again) == second.snapshot.session_id


def test_full_pages_do_not_grow_for_ever(clock: Clock) -> None:
    kept = recent.RecentCandidates(1.0)
    for number in range(recent.PAGES_MAX * 3):
        clock.now += 0.01
        kept.keep(recent.Kind(str(number), 0, 0, "", None), machines(1))
    assert len(kept._pages) <= recent.PAGES_MAX


def test_by_default_nothing_is_reused() -> None:
    index = Index(*machines(2))
    decision = decision_on(index, seconds=0.0)
    for _ in range(3):
        taken(decision)
    assert index.read == 3
