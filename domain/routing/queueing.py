"""How long a request that finds no free slot will wait, and who has what comes free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from domain.routing.demand import Demand
from domain.routing.facts import Candidate, Load, Snapshot
from domain.routing.gates import reasons_against
from domain.routing.health import Health
from domain.routing.policy import Policy

RETRY_SECONDS_MIN = 2
RETRY_SECONDS_MAX = 30
GUESSED_SECONDS = 3.0
"""How long a place in the queue takes while nobody knows better."""


def expected_wait_seconds(position: int, slots: int, slot_seconds: float | None) -> float | None:
    """The wait of the request at a position of the queue, the first one being 1.

    ``slots`` come free at a rate of one in ``slot_seconds / slots``. None when nobody knows how long requests take, or
    when there is no slot.
    """
    if slot_seconds is None or slots <= 0:
        return None
    return position * slot_seconds / slots


def retry_after_seconds(position: int, wait_seconds: float | None) -> int:
    """When to ask again after a refusal: once a part of the queue is gone."""
    if wait_seconds is None:
        wait_seconds = GUESSED_SECONDS * position
    return min(RETRY_SECONDS_MAX, max(RETRY_SECONDS_MIN, math.ceil(wait_seconds)))


class Vacancy(msgspec.Struct, frozen=True):
    """A machine with free slots: ``requests_all`` are in flight on it, ``requests`` of them for each model."""

    snapshot: Snapshot
    health: Health
    requests_all: int
    requests: Mapping[str, int]

    @property
    def slots(self) -> int:
        return self.snapshot.capacity - self.requests_all

    def load_of(self, model: str) -> Load:
        return Load(self.requests_all, self.requests.get(model, 0))

    def with_one_more(self, model: str) -> Vacancy:
        requests = {**self.requests, model: self.requests.get(model, 0) + 1}
        return Vacancy(self.snapshot, self.health, self.requests_all + 1, requests)


class Waiter(Protocol):
    def demand_at(self, now: float) -> Demand: ...


W = TypeVar("W", bound=Waiter)


def whom_to_wake(waiting: Iterable[W], vacancies: Sequence[Vacancy], policy: Policy, *, now: float) -> list[W]:
    """Those of a queue whom the free slots can serve, each a slot of its own, in the order of the queue.

    Whoever no slot can serve is passed over and loses nothing by it. A machine that is put aside counts, because it is
    asked when there is no other.
    """
    free, woken = [one for one in vacancies if one.slots > 0], []
    for waiter in waiting:
        if not free:
            break
        demand = msgspec.structs.replace(waiter.demand_at(now), nobody_else=True)
        for number, one in enumerate(free):
            candidate = Candidate(one.snapshot, one.load_of(demand.model), one.health)
            if not reasons_against(candidate, demand, policy, now=now):
                woken.append(waiter)
                taken = one.with_one_more(demand.model)
                free[number : number + 1] = [taken] if taken.slots > 0 else []
                break
    return woken
