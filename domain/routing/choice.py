"""The choice: the cheapest machine, and among near ties the shortest queue, the fewest requests, then chance."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random

import msgspec

from domain.routing.cost import Cost, cost_of
from domain.routing.demand import Demand
from domain.routing.facts import Candidate
from domain.routing.gates import reasons_against
from domain.routing.policy import Policy


class Choice(msgspec.Struct, frozen=True):
    """``near_ties`` is how many machines were within the tie band, the chosen one included."""

    candidate: Candidate
    cost: Cost
    near_ties: int = 1


def choose(
    candidates: Iterable[Candidate],
    demand: Demand,
    policy: Policy,
    random: Random,
    *,
    now: float,
    passed_over: Collection[str] = (),
) -> Choice | None:
    """The machine for this request, or None when none is eligible.

    Machines of the preferred account come first when there are any. Among all within ``near_tie_ms`` of the lowest
    cost, the shortest queue for the model wins, then the fewest requests, then chance. ``passed_over`` are sessions
    whose claim just failed.
    """
    eligible = [
        candidate
        for candidate in candidates
        if candidate.snapshot.session_id not in passed_over and not reasons_against(candidate, demand, policy, now=now)
    ]
    preferred = demand.constraints.preferred_account
    if preferred:
        eligible = [one for one in eligible if one.snapshot.account_id == preferred] or eligible
    if not eligible:
        return None
    priced = [(cost.total_ms, cost, one) for one in eligible for cost in (cost_of(one, demand, policy),)]
    limit_ms = min(total_ms for total_ms, _, _ in priced) + policy.near_tie_ms
    near = [(cost, one) for total_ms, cost, one in priced if total_ms <= limit_ms]
    shortest = min((cost.depth, one.load.requests_all) for cost, one in near)
    cost, chosen = random.choice([(cost, one) for cost, one in near if (cost.depth, one.load.requests_all) == shortest])
    return Choice(chosen, cost, len(near))
