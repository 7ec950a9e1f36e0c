"""A machine's verdict in words and numbers, as its owner and the network's operator read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from api.ports import MachineRecord
from domain.routing import (
    Candidate,
    Cost,
    Load,
    ModelStanding,
    Policy,
    Reason,
    Snapshot,
    Standing,
    breaker_state,
    reputation,
    standing_of,
)

QUIET_SECONDS = 600.0
"""A model that nobody asked for in this time counts as one without demand."""

SizeOf = Callable[[str], float | None]
"""A model's size in GiB, 0 when nobody knows it, None for a model that the network does not know."""


def standing_in(record: MachineRecord, policy: Policy, *, size_of: SizeOf) -> Standing:
    """How a machine stands now."""
    machine = record.snapshot
    if machine is None:
        return Standing((Reason.NOT_CONNECTED,), ())
    busy = max((load.requests_all for load in record.loads.values()), default=0)
    return standing_of(
        Candidate(machine, Load(busy), record.health),
        policy,
        now=time.time(),
        size_of=size_of,
        loads=record.loads,
    )


def summary_of(record: MachineRecord, standing: Standing) -> dict[str, Any]:
    """Whether it can get work, and if not, why."""
    machine = record.snapshot
    return {
        "id": record.machine_id,
        "connected": machine is not None,
        "status": status_of(machine),
        "routable": standing.routable,
        "routable_for_owner": bool(record.account_id) and standing.routable_for_owner,
        "summary": _in_words(record, standing),
        "reasons": [reason_json(reason) for reason in standing.reasons],
        "last_seen_at": _when(record.last_seen_at),
        "trust_level": machine.trust_level if machine else "none",
        "chip": record.chip,
        "machine_model": record.machine_model,
        "models": list(record.models),
    }


def details_of(record: MachineRecord, standing: Standing, policy: Policy) -> dict[str, Any]:
    """Everything that routing knows of it."""
    machine, health, now = record.snapshot, record.health, time.time()
    facts: dict[str, Any] = {
        "per_model": [_model(model, record, policy) for model in standing.models],
        "reputation": {
            "score": round(reputation(health), 3),
            "jobs_done": health.jobs_done,
            "jobs_failed": health.jobs_failed,
            "challenges_passed": health.challenges_passed,
            "challenges_failed": health.challenges_failed,
            "uptime_seconds": int(health.uptime_seconds),
        },
        "circuit_breaker": {
            "state": breaker_state(health, now=now, policy=policy),
            "failures_in_row": health.failures_in_row,
            "failures_allowed": policy.breaker_failures - 1,
            "put_aside_until": _when(health.put_aside_until) if health.put_aside_until > now else None,
        },
    }
    if machine is not None:
        facts |= {
            "requests_in_flight": max((load.requests_all for load in record.loads.values()), default=0),
            "capacity": machine.capacity,
            "minimum_trust": policy.minimum_trust,
            "challenge": {
                "passed_at": _when(machine.challenge_passed_at) if machine.challenge_passed_at else None,
                "age_seconds": int(now - machine.challenge_passed_at) if machine.challenge_passed_at else None,
                "age_seconds_max": int(policy.challenge_age_seconds_max),
            },
            "thermal_state": machine.thermal_state,
            "memory_gb": {"total": machine.total_memory_gb, "in_use": round(machine.gpu_memory_active_gb, 2)},
        }
    return facts


def _model(model: ModelStanding, record: MachineRecord, policy: Policy) -> dict[str, Any]:
    asked_at = record.asked_at.get(model.model)
    return {
        "id": model.model,
        "routable": not model.reasons,
        "reasons": [reason_json(reason) for reason in model.reasons],
        "requests_in_flight": model.candidate.load.requests_model,
        "size_gb": round(model.demand.size_gb, 2) or None,
        "last_asked_at": _when(asked_at) if asked_at else None,
        "cost_ms": cost_json(model.cost(policy)),
    }


def _in_words(record: MachineRecord, standing: Standing) -> str:
    if standing.reasons:
        why = "; ".join(reason.says for reason in standing.reasons)
        is_own = bool(record.account_id) and standing.routable_for_owner
        return f"routable for its owner alone: {why}" if is_own else why
    if not standing.routable:
        return "no model of this machine can be served now"
    asked_at = max(record.asked_at.values(), default=0.0)
    if time.time() - asked_at > QUIET_SECONDS:
        return f"routable, and nobody asked for its models in the last {QUIET_SECONDS / 60:.0f} minutes"
    return "routable"


def status_of(machine: Snapshot | None) -> str:
    if machine is None:
        return "offline"
    return "untrusted" if machine.untrusted else "draining" if machine.draining else "online"


def reason_json(reason: Reason) -> dict[str, str]:
    return {"code": reason.value, "message": reason.says, "fix": reason.fix}


def cost_json(cost: Cost) -> dict[str, int]:
    """The total and every term, in milliseconds."""
    return {"total": round(cost.total_ms)} | {name: round(term) for name, term in cost.terms().items()}


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
