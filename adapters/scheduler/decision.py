"""Which machine a request gets: the index narrows the fleet, the cost model decides."""

from __future__ import annotations

import time
from collections.abc import Collection
from random import Random
from uuid import UUID

import msgspec

from adapters.scheduler.fleet import SchedulerFleet, Supply
from adapters.scheduler.recent import RecentCandidates, kind_of
from domain.routing import Candidate, Choice, Demand, Policy, choose, could_fit


class Decision:
    """``relayed`` says that gateways carry requests for each other, so that the machines of all are candidates;
    ``reuse_seconds`` for how long what the index said is used again."""

    def __init__(
        self,
        fleet: SchedulerFleet,
        policy: Policy,
        random: Random,
        *,
        relayed: bool = False,
        reuse_seconds: float = 0.0,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._random = random
        self._relayed = relayed
        self._recent = RecentCandidates(reuse_seconds)

    def choose(self, demand: Demand, gateway_id: UUID, *, passed_over: Collection[str] = ()) -> Choice | None:
        """The best machine for a request of a gateway, or None. A machine that was put aside is only chosen when no
        healthy one offers the model, busy or not."""
        asked, reachable = demand.constraints, self.reachable_from(gateway_id)

        def best(candidates: list[Candidate], wanted: Demand = demand) -> Choice | None:
            return choose(candidates, wanted, self._policy, self._random, now=time.time(), passed_over=passed_over)

        preferred = asked.preferred_account
        choice = best(self._machines(demand, gateway_id, account_id=preferred)) if preferred else None
        if choice is None and not (asked.allowed or asked.only_account):
            kind = kind_of(demand, reachable)
            if not (passed_over or demand.excluded):  # after a failure nothing but the present counts
                choice = best(self._recent.of(kind))
                if choice is not None:
                    return choice
            narrowed = self._fleet.cheapest(demand, self._policy, reachable)
            self._recent.keep(kind, narrowed.candidates)
            choice = best(narrowed.candidates)
            if choice is not None or (narrowed.complete and not self._nobody_is_healthy(demand, gateway_id)):
                return choice
        if choice is None:
            everybody = self._machines(demand, gateway_id, account_id=asked.only_account)
            choice = best(everybody)
            if choice is None and self._nobody_is_healthy(demand, gateway_id):
                choice = best(everybody, msgspec.structs.replace(demand, nobody_else=True))
        return choice

    def count_claim(self, session_id: str, model: str, output_tokens: int) -> None:
        """A slot was taken of a machine that was chosen."""
        self._recent.count_claim(session_id, model, output_tokens)

    def supply(self, demand: Demand, gateway_id: UUID) -> Supply:
        """What serves a request of a gateway, busy or not."""
        return self._fleet.supply(demand, self._policy, self.reachable_from(gateway_id))

    def is_too_large(self, demand: Demand, gateway_id: UUID) -> bool:
        """Whether there are machines for a request, and none with memory for it however long one waits."""
        machines = self._machines(demand, gateway_id, account_id=demand.constraints.only_account)
        return bool(machines) and not any(could_fit(one, demand, self._policy) for one in machines)

    def _machines(self, demand: Demand, gateway_id: UUID, *, account_id: str) -> list[Candidate]:
        """All machines that a request may ask for, of one account or of any."""
        asked, reachable = demand.constraints, self.reachable_from(gateway_id)
        return self._fleet.machines_for(
            demand.model, reachable, own_account=asked.own_account, account_id=account_id, allowed=asked.allowed
        )

    def _nobody_is_healthy(self, demand: Demand, gateway_id: UUID) -> bool:
        supply = self.supply(demand, gateway_id)
        return supply.machines > 0 and supply.healthy == 0

    def reachable_from(self, gateway_id: UUID) -> UUID | None:
        """The gateway whose machines its requests can get, None for those of all."""
        return None if self._relayed else gateway_id
