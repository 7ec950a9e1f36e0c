"""From a fleet to a handful: how an index orders machines.

The index only narrows: it must have the best machines among its first, in whatever order. Costs of requests are nearly
lines over their size, so an order is kept for a few typical sizes and a request takes the one nearest to its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from domain.routing.cost import cost_of, speed_of
from domain.routing.demand import Demand
from domain.routing.facts import IDLE, Candidate
from domain.routing.gates import needs_swap, room_gb
from domain.routing.policy import Policy

SHAPES = ((100, 32), (500, 256), (4_000, 2_048), (8_000, 128))
"""Prompt and output tokens of a short, a usual and a long request, and of one that is nearly all prompt."""

ROOM_UNLIMITED_GB = 1e6

STEP_MS = 50.0
STEP_GB = 0.125
"""What the index cannot tell apart, so that small changes of a machine change nothing in it."""


class Rank(NamedTuple):
    """One model on one machine, as an index sees it. The first four are the costs of the shapes while nothing is
    in flight; ``queue_ms`` is what each request in flight adds; ``in_flight`` is what the machine itself reports;
    ``room_gb`` is the memory for a request's cache."""

    short_ms: float
    usual_ms: float
    long_ms: float
    reading_ms: float
    queue_ms: float
    in_flight: int
    room_gb: float


def rank_of(candidate: Candidate, model: str, size_gb: float, policy: Policy) -> Rank:
    machine = candidate.snapshot
    slot = machine.slots.get(model)
    idle = Candidate(machine, IDLE, candidate.health)
    short, usual, long, reading = _costs_without_load(idle, model, size_gb, policy)
    room = room_gb(idle, slot, model, size_gb, swap=True)
    known = size_gb > 0 and machine.total_memory_gb > 0
    return Rank(
        short_ms=short,
        usual_ms=usual,
        long_ms=long,
        reading_ms=reading,
        queue_ms=policy.depth_ms + policy.pending_ms + 1000.0 * SHAPES[1][1] / speed_of(machine, policy)[0],
        in_flight=sum(other.num_running + other.num_waiting for other in machine.slots.values()),
        room_gb=STEP_GB * math.ceil(room / STEP_GB) if known else ROOM_UNLIMITED_GB,
    )


def _costs_without_load(idle: Candidate, model: str, size_gb: float, policy: Policy) -> list[float]:
    """The costs of the shapes. Only three terms differ between them, so the others are computed once."""
    prompt_tokens, output_tokens = SHAPES[0]
    cost = cost_of(idle, Demand(model, prompt_tokens, output_tokens, size_gb=size_gb), policy)
    shared = cost.total_ms - cost.depth - cost.backlog - cost.prefill - cost.decode - cost.model_swap
    costs = []
    for prompt, output in SHAPES:
        swap = policy.model_swap_ms if needs_swap(idle, Demand(model, prompt, output, size_gb=size_gb), policy) else 0.0
        own = cost.prefill * prompt / prompt_tokens + cost.decode * output / output_tokens + swap
        costs.append(STEP_MS * round((shared + own) / STEP_MS))
    return costs


def shape_of(demand: Demand) -> int:
    """Which of the shapes a request is nearest to; a factor in its prompt counts as much as one in its output."""

    def distance(shape: int) -> float:
        prompt_tokens, output_tokens = SHAPES[shape]
        return math.hypot(
            math.log((1 + demand.prompt_tokens) / (1 + prompt_tokens)),
            math.log((1 + demand.output_tokens) / (1 + output_tokens)),
        )

    return min(range(len(SHAPES)), key=distance)
