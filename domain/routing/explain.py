"""Why this machine, and why not that one: every choice with its terms, every machine with its reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import msgspec

from domain.kinds import TEXT, ModelKind
from domain.routing.cost import Cost, cost_of
from domain.routing.demand import Demand
from domain.routing.facts import IDLE, Candidate, Load
from domain.routing.gates import Reason, reasons_against
from domain.routing.narrowing import SHAPES
from domain.routing.policy import Policy

OF_ONE_MODEL = frozenset(
    {
        Reason.MODEL_NOT_IN_CATALOG,
        Reason.OTHER_KIND,
        Reason.ENGINE_FULL,
        Reason.SLOT_UNAVAILABLE,
        Reason.OUT_OF_MEMORY,
    }
)
"""Reasons that concern a model on a machine; the others concern the machine."""

PASSING = frozenset({Reason.FULL, Reason.ENGINE_FULL, Reason.PUT_ASIDE})
"""Reasons that end by themselves. A machine that has no others may still be given a slot."""

OF_OTHERS = frozenset({Reason.TRUST_TOO_LOW, Reason.PRIVATE_ONLY})
"""Reasons that do not concern the machine's owner."""


class Assessment(msgspec.Struct, frozen=True):
    """One machine before one request: what is against it, and what it would cost."""

    candidate: Candidate
    reasons: tuple[Reason, ...]
    cost: Cost


def assess(candidates: Iterable[Candidate], demand: Demand, policy: Policy, *, now: float) -> list[Assessment]:
    """Every machine with its reasons and its terms: the eligible ones first, each part by its cost."""
    assessed = [
        Assessment(one, reasons_against(one, demand, policy, now=now), cost_of(one, demand, policy))
        for one in candidates
    ]
    return sorted(assessed, key=lambda one: (bool(one.reasons), one.cost.total_ms))


def describe(assessment: Assessment) -> str:
    """One line that names the machine, its total and every term, and the gates that are closed."""
    terms = " + ".join(f"{name} {term:.0f}" for name, term in assessment.cost.terms().items())
    closed = ", ".join(assessment.reasons)
    verdict = f"not eligible ({closed})" if closed else "eligible"
    machine = assessment.candidate.snapshot.machine_id[:12]
    return f"machine {machine}: {verdict}, {assessment.cost.total_ms:.0f} ms = {terms}"


class ModelStanding(msgspec.Struct, frozen=True):
    """One model on one machine, with what is in flight, before a usual request."""

    model: str
    reasons: tuple[Reason, ...]
    candidate: Candidate
    demand: Demand

    def cost(self, policy: Policy) -> Cost:
        """What the request would cost now."""
        return cost_of(self.candidate, self.demand, policy)


class Standing(msgspec.Struct, frozen=True):
    """A machine before the whole network. ``reasons`` concern all its models."""

    reasons: tuple[Reason, ...]
    models: tuple[ModelStanding, ...]

    @property
    def routable(self) -> bool:
        """Whether it can get a request for some model now."""
        return not self.reasons and any(not model.reasons for model in self.models)

    @property
    def routable_for_owner(self) -> bool:
        """The same for a request of its owner, if it has one, that asks for it."""
        return OF_OTHERS.issuperset(self.reasons) and any(not model.reasons for model in self.models)

    def takes(self, model: str, *, of_owner: bool = False) -> bool:
        """Whether it can get one for this model, or one of its owner's, as soon as what passes by itself has passed."""
        passing = PASSING | OF_OTHERS if of_owner else PASSING
        return passing.issuperset(self.reasons) and any(
            passing.issuperset(one.reasons) for one in self.models if one.model == model
        )

    def advice(self) -> list[str]:
        """What the machine's operator should know, a sentence a reason; empty when there is nothing to do.

        That every slot is taken is no news: it comes and goes with each request.
        """
        said = [sentence_of(reason) for reason in self.reasons if reason is not Reason.FULL]
        return said + [
            f"{one.model}: {sentence_of(reason)}"
            for one in self.models
            for reason in one.reasons
            if reason is not Reason.ENGINE_FULL
        ]


def sentence_of(reason: Reason) -> str:
    return f"{reason.says}; {reason.fix}"


def standing_of(
    candidate: Candidate,
    policy: Policy,
    *,
    now: float,
    size_of: Callable[[str], float | None],
    loads: Mapping[str, Load] | None = None,
) -> Standing:
    """How a connected machine stands, with a usual request for each of its models in mind.

    ``size_of`` gives a model's size in GiB, 0 when it is not known, and None for a model that the network does not
    know. ``loads`` are what is in flight for each model.
    """
    machine = candidate.snapshot
    shared: dict[Reason, None] = {} if machine.models else {Reason.MODEL_NOT_OFFERED: None}
    models = []
    for model in machine.models:
        size_gb = size_of(model)
        prompt_tokens, output_tokens = SHAPES[1]
        kind = cast("ModelKind", machine.kinds.get(model, TEXT))
        demand = Demand(model, prompt_tokens, output_tokens, size_gb=size_gb or 0.0, kind=kind)
        seen = Candidate(machine, (loads or {}).get(model, IDLE), candidate.health)
        against = reasons_against(seen, demand, policy, now=now)
        shared.update(dict.fromkeys(reason for reason in against if reason not in OF_ONE_MODEL))
        own = [reason for reason in against if reason in OF_ONE_MODEL]
        if size_gb is None:
            own.insert(0, Reason.MODEL_NOT_IN_CATALOG)
        models.append(ModelStanding(model, tuple(own), seen, demand))
    if not machine.models:
        anything = Demand("", 0, 0)
        against = reasons_against(candidate, anything, policy, now=now)
        shared.update(dict.fromkeys(against))
    return Standing(tuple(shared), tuple(models))
