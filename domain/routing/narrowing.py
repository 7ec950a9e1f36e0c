"""From a fleet to a handful: how an index orders machines.

The index only narrows: it must have the best machines among its first, in whatever order. Costs of requests are nearly
lines over their size, so an order is kept for a few typical sizes and a request takes the one nearest to its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from domain.routing.cost import cost_of, speed_of
from domain.routing.demand import Demand
from domain.routing.facts import Candidate, Load
from domain.routing.gates import room_gb
from domain.routing.policy import Policy

SHAPES = ((100, 32), (500, 256), (4_000, 2_048))
"""Prompt and output tokens of a short, a usual and a long request."""

ROOM_UNLIMITED_GB = 1e6


class Rank(NamedTuple):
    """One model on one machine, as an index sees it. The first three are the costs of the three shapes while nothing
    is in flight; ``queue_ms`` is what each request in flight adds; ``in_flight`` is what the machine itself reports;
    ``room_gb`` is the memory for a request's cache."""

    short_ms: float
    usual_ms: float
    long_ms: float
    queue_ms: float
    in_flight: int
    room_gb: float


def rank_of(candidate: Candidate, model: str, size_gb: float, policy: Policy) -> Rank:
    machine = candidate.snapshot
    slot = machine.slots.get(model)
    idle = Candidate(machine, Load(), candidate.health)
    short, usual, long = (
        _without_load(idle, Demand(model, prompt, output, size_gb=size_gb), policy) for prompt, output in SHAPES
    )
    known = size_gb > 0 and machine.total_memory_gb > 0
    return Rank(
        short_ms=short,
        usual_ms=usual,
        long_ms=long,
        queue_ms=policy.depth_ms + policy.pending_ms + 1000.0 * SHAPES[1][1] / speed_of(machine, policy)[0],
        in_flight=sum(other.num_running + other.num_waiting for other in machine.slots.values()),
        room_gb=room_gb(idle, slot, model, size_gb, swap=True) if known else ROOM_UNLIMITED_GB,
    )


def _without_load(idle: Candidate, demand: Demand, policy: Policy) -> float:
    cost = cost_of(idle, demand, policy)
    return cost.total_ms - cost.depth - cost.backlog


def shape_of(demand: Demand, policy: Policy) -> int:
    """Which of the shapes a request is nearest to, by the work that it makes: 0 short, 1 usual, 2 long."""
    work = math.log(_work(demand.prompt_tokens, demand.output_tokens, policy))
    return min(range(len(SHAPES)), key=lambda shape: abs(math.log(_work(*SHAPES[shape], policy)) - work))


def _work(prompt_tokens: int, output_tokens: int, policy: Policy) -> float:
    return 1.0 + output_tokens + prompt_tokens / policy.prefill_ratio
