"""Which machine serves a request: gates with named reasons, the millisecond cost model, the choice, and why.

Pure functions over snapshots. Source: provider protocol, sections 9 to 11 and 13; the lowest cost wins.
"""

from domain.routing.choice import Choice, choose
from domain.routing.cost import Cost, cost_of
from domain.routing.demand import ANY_MACHINE, Constraints, Demand
from domain.routing.explain import Assessment, ModelStanding, Standing, assess, describe, standing_of
from domain.routing.facts import TRUST_RANK, Candidate, Load, SlotState, Snapshot, capacity_of
from domain.routing.gates import Reason, could_fit, reasons_against
from domain.routing.health import BreakerState, Health, Observation, ObservationKind, breaker_state, observe, reputation
from domain.routing.hedging import Hedging, Kind
from domain.routing.narrowing import Rank, rank_of, shape_of
from domain.routing.policy import Policy
from domain.routing.queueing import Vacancy, expected_wait_seconds, retry_after_seconds, whom_to_wake

__all__ = [
    "ANY_MACHINE",
    "TRUST_RANK",
    "Assessment",
    "BreakerState",
    "Candidate",
    "Choice",
    "Constraints",
    "Cost",
    "Demand",
    "Health",
    "Hedging",
    "Kind",
    "Load",
    "ModelStanding",
    "Observation",
    "ObservationKind",
    "Policy",
    "Rank",
    "Reason",
    "SlotState",
    "Snapshot",
    "Standing",
    "Vacancy",
    "assess",
    "breaker_state",
    "capacity_of",
    "choose",
    "cost_of",
    "could_fit",
    "describe",
    "expected_wait_seconds",
    "observe",
    "rank_of",
    "reasons_against",
    "reputation",
    "retry_after_seconds",
    "shape_of",
    "standing_of",
    "whom_to_wake",
]
