"""Small valid objects that tests alter: envelopes of events, machines as routing sees them, commands."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from domain.eventsourced import Actor, Aggregate, DomainEvent
from domain.ledger import Admit, Dispatch, GrantCredit, Settle
from domain.pricing import Quote
from domain.requests import job_id_of
from domain.routing import Candidate, Load, Snapshot
from tests.support.memory_ledger import BEGINNING

REQUEST = UUID("7d1c2b1e-0000-4000-8000-000000000001")
NOW = BEGINNING.timestamp()

ONE_TO_ONE = Quote(1_000_000, 1_000_000, 500_000, "built_in", 1, 100)
"""A quote under which a token costs one micro-dollar, and one that was remembered half of it."""


def record(aggregate: Aggregate, event: type[DomainEvent], **payload: Any) -> DomainEvent:
    """Make the aggregate's next event and apply it."""
    recorded = event(
        originator_id=aggregate.id,
        originator_version=aggregate.version + 1,
        schema_version=event.SCHEMA_VERSION,
        timestamp=BEGINNING,
        actor=Actor("system", "test"),
        correlation_id="correlation",
        **payload,
    )
    recorded.evolve(aggregate)
    return recorded


# --- commands ----------------------------------------------------------------------------------------------------


def grant(account: str, amount: int, reference: str = "first") -> GrantCredit:
    return GrantCredit(account_id=account, amount_micro_usd=amount, reference=f"{account}-{reference}")


def admit(account: str, prompt: int = 1_000, output: int = 1_000, **changes: Any) -> Admit:
    values: dict[str, Any] = {
        "request_id": REQUEST,
        "account_id": account,
        "key_id": "key",
        "gateway_id": "gateway",
        "model": "model",
        "prompt_estimate": prompt // 4,
        "prompt_bound": prompt,
        "output_bound": output,
        "quote": ONE_TO_ONE,
        "expires_at": BEGINNING + timedelta(seconds=3_690),
    }
    return Admit(**{**values, **changes})


def dispatch(attempt: int = 1, owner: str = "owner", **changes: Any) -> Dispatch:
    values: dict[str, Any] = {
        "request_id": REQUEST,
        "attempt": attempt,
        "provider_id": f"session-{attempt}",
        "machine_id": f"machine-{attempt}",
        "provider_key": "key",
        "provider_account_id": owner,
    }
    return Dispatch(**{**values, **changes})


def settle(account: str, prompt: int = 600, completion: int = 400, attempt: int = 1, **changes: Any) -> Settle:
    values: dict[str, Any] = {
        "request_id": REQUEST,
        "account_id": account,
        "job_id": str(job_id_of(REQUEST, attempt)),
        "claimed_prompt_tokens": prompt,
        "claimed_completion_tokens": completion,
        "completion_bound": 1_000_000,
    }
    return Settle(**{**values, **changes})


# --- machines ----------------------------------------------------------------------------------------------------


def snapshot(**changes: Any) -> Snapshot:
    """A machine that takes everything: trusted, challenged a moment ago, loaded, idle."""
    values: dict[str, Any] = {
        "session_id": "session",
        "machine_id": "machine",
        "gateway_id": "gateway",
        "account_id": "owner",
        "provider_key": "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=",
        "trust_level": "hardware",
        "untrusted": False,
        "draining": False,
        "runtime_verified": True,
        "private": True,
        "challenge_passed_at": NOW,
        "capacity": 4,
        "models": {"model": 1_000_000},
        "context_lengths": {"model": 8_192},
        "slots": {},
        "decode_tps": 100.0,
        "prefill_tps": 1_000.0,
        "memory_bandwidth_gbs": 400.0,
        "memory_pressure": 0.0,
        "cpu_usage": 0.0,
        "thermal_state": "nominal",
        "gpu_memory_active_gb": 0.0,
        "total_memory_gb": 64.0,
        "chip": "Apple M4 Max",
        "machine_model": "Mac16,5",
        "signing_key": "key",
        "quantization": {"model": "8bit"},
    }
    return Snapshot(**{**values, **changes})


def candidate(load: Load | None = None, **changes: Any) -> Candidate:
    return Candidate(snapshot(**changes), load or Load())
