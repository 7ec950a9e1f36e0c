"""GET /v1/me/providers and /v1/me/providers/{id}/routing: why an account's machine gets work, or gets none.

A machine's id is the hash of its signing key. Everything is computed from what is true now, by the functions that
route requests.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate
from api.coordinator import Coordinator
from api.ports import MachineRecord
from domain.errors import NotFound
from domain.routing import Candidate, Load, ModelStanding, Reason, Snapshot, Standing, reputation, standing_of

router = APIRouter()

QUIET_SECONDS = 600.0
"""A model that nobody asked for in this time counts as one without demand."""


@router.get("/v1/me/providers")
async def list_machines(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    records = await coordinator.fleet.machines_of(caller.account_id)
    return _json({"providers": [_summary(record, _standing(record, coordinator)) for record in records]})


@router.get("/v1/me/providers/{machine_id}/routing")
async def explain_machine(request: Request, machine_id: str) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    for record in await coordinator.fleet.machines_of(caller.account_id, machine_id):
        standing = _standing(record, coordinator)
        return _json(_summary(record, standing) | _details(record, standing, coordinator))
    raise NotFound("No machine of this id is linked to your account; GET /v1/me/providers lists those that are.")


def _standing(record: MachineRecord, coordinator: Coordinator) -> Standing:
    machine = record.snapshot
    if machine is None:
        return Standing((Reason.NOT_CONNECTED,), ())
    busy = max((load.requests_all for load in record.loads.values()), default=0)
    return standing_of(
        Candidate(machine, Load(busy), record.health),
        coordinator.policy,
        now=time.time(),
        size_of=coordinator.catalog.size_of,
        loads=record.loads,
    )


def _summary(record: MachineRecord, standing: Standing) -> dict[str, Any]:
    machine = record.snapshot
    return {
        "id": record.machine_id,
        "connected": machine is not None,
        "status": _status(machine),
        "routable": standing.routable,
        "summary": _in_words(record, standing),
        "reasons": [_reason(reason) for reason in standing.reasons],
        "last_seen_at": _when(record.last_seen_at),
        "trust_level": machine.trust_level if machine else "none",
        "chip": record.chip,
        "machine_model": record.machine_model,
        "models": list(record.models),
    }


def _details(record: MachineRecord, standing: Standing, coordinator: Coordinator) -> dict[str, Any]:
    machine, health, now = record.snapshot, record.health, time.time()
    policy = coordinator.policy
    facts: dict[str, Any] = {
        "per_model": [_model(model, record) for model in standing.models],
        "reputation": {
            "score": round(reputation(health), 3),
            "jobs_done": health.jobs_done,
            "jobs_failed": health.jobs_failed,
            "challenges_passed": health.challenges_passed,
            "challenges_failed": health.challenges_failed,
            "uptime_seconds": int(health.uptime_seconds),
        },
        "circuit_breaker": {
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


def _model(model: ModelStanding, record: MachineRecord) -> dict[str, Any]:
    asked_at = record.asked_at.get(model.model)
    return {
        "id": model.model,
        "routable": not model.reasons,
        "reasons": [_reason(reason) for reason in model.reasons],
        "requests_in_flight": model.load.requests_model,
        "last_asked_at": _when(asked_at) if asked_at else None,
        "cost_ms": {"total": round(model.cost.total_ms)}
        | {name: round(term) for name, term in model.cost.terms().items()},
    }


def _in_words(record: MachineRecord, standing: Standing) -> str:
    if standing.reasons:
        return "; ".join(reason.says for reason in standing.reasons)
    if not standing.routable:
        return "no model of this machine can be served now"
    asked_at = max(record.asked_at.values(), default=0.0)
    if time.time() - asked_at > QUIET_SECONDS:
        return f"routable, and nobody asked for its models in the last {QUIET_SECONDS / 60:.0f} minutes"
    return "routable"


def _status(machine: Snapshot | None) -> str:
    if machine is None:
        return "offline"
    return "untrusted" if machine.untrusted else "draining" if machine.draining else "online"


def _reason(reason: Reason) -> dict[str, str]:
    return {"code": reason.value, "message": reason.says, "fix": reason.fix}


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(answer: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})
