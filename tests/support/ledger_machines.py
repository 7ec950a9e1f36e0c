"""Machines, jobs and gateways as the fleet table and the scheduler know them."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID, uuid4

from adapters.relay.mailbox import GatewayUnreachable
from adapters.scheduler.gateway_fleet import GatewayFleet
from domain.dispatch import DispatchJob, Notice
from domain.routing import Snapshot
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_waiting import Connection


def machine(
    *, gateway_id: UUID = GATEWAY, capacity: int = 1, models: tuple[str, ...] = (MODEL,), **changes: Any
) -> Snapshot:
    """An idle machine that passes every gate of routing."""
    facts: dict[str, Any] = {
        "session_id": str(uuid4()),
        "machine_id": "ab" * 32,
        "gateway_id": str(gateway_id),
        "account_id": "acct-provider",
        "provider_key": "provider-key",
        "trust_level": "hardware",
        "untrusted": False,
        "draining": False,
        "runtime_verified": True,
        "private": True,
        "challenge_passed_at": time.time(),
        "capacity": capacity,
        "models": dict.fromkeys(models, 1_000_000),
        "context_lengths": dict.fromkeys(models, 8_192),
        "slots": {},
        "decode_tps": 100.0,
        "prefill_tps": 400.0,
        "memory_bandwidth_gbs": 400.0,
        "memory_pressure": 0.0,
        "cpu_usage": 0.0,
        "thermal_state": "nominal",
        "gpu_memory_active_gb": 0.0,
        "total_memory_gb": 64.0,
        "chip": "Apple M4 Max",
        "machine_model": "Mac16,5",
        "signing_key": "",
        "quantization": {},
    }
    return Snapshot(**(facts | changes))


async def connected(gateway: GatewayFleet, *, capacity: int = 4, **facts: Any) -> Snapshot:
    """A machine of its own that just proved who it is and may be routed to."""
    one = machine(capacity=capacity, **({"machine_id": uuid4().hex * 2} | facts))
    await gateway.meet(one)
    await gateway.announce(one, routable=True)
    return one


def job(request_id: UUID | None = None, **changes: Any) -> DispatchJob:
    """An intent to find a machine for the first attempt at a small request."""
    facts: dict[str, Any] = {
        "request_id": request_id or uuid4(),
        "attempt": 1,
        "account_id": "acct-consumer",
        "model": MODEL,
        "size_gb": 1.0,
        "prompt_tokens": 10,
        "output_tokens": 20,
        "reply_to": GATEWAY,
        "deadline": time.time() + 600.0,
    }
    return DispatchJob(**(facts | changes))


def lease(look: Connection, gateway_id: UUID = GATEWAY, *, lapsed_seconds: float = -600.0) -> None:
    """A gateway whose lease lapsed so long ago, or stands when that is negative."""
    look.execute(
        "INSERT INTO gateways (gateway_id, internal_url, lease_until) "
        "VALUES (%s, 'http://gateway', now() - make_interval(secs => %s)) "
        "ON CONFLICT (gateway_id) DO UPDATE SET lease_until = excluded.lease_until",
        (gateway_id, lapsed_seconds),
    )


def open_requests_of(look: Connection, *jobs: DispatchJob) -> None:
    """Let jobs belong to requests that are admitted and not ended, without a ledger behind them."""
    for one in jobs:
        look.execute(
            "INSERT INTO open_requests (request_id, account_id, gateway_id, model, reserved_micro_usd, admitted_at, "
            "expires_at) VALUES (%s, %s, %s, %s, 1, now(), now() + interval '1 hour') ON CONFLICT DO NOTHING",
            (one.request_id, one.account_id, one.reply_to, one.model),
        )


def busy_of(look: Connection, session_id: str) -> int:
    row = look.execute("SELECT busy FROM fleet WHERE session_id = %s", (session_id,)).fetchone()
    assert row is not None
    return int(row[0])


def claims(look: Connection) -> dict[tuple[UUID, int], str]:
    """Request and attempt to the session that serves it."""
    rows = look.execute("SELECT request_id, attempt, session_id::text FROM claims").fetchall()
    return {(row[0], row[1]): row[2] for row in rows}


def waiting(look: Connection) -> list[UUID]:
    """The requests in the queue, the oldest first."""
    return [row[0] for row in look.execute("SELECT request_id FROM waiters ORDER BY enqueued_at")]


def assert_counters_are_true(look: Connection) -> None:
    """No machine's counter drifted from its claims, and none is above its capacity."""
    rows = look.execute(
        "SELECT f.session_id, f.busy, f.capacity, count(c.request_id) "
        "FROM fleet f LEFT JOIN claims c USING (session_id) GROUP BY f.session_id"
    ).fetchall()
    for session_id, busy, capacity, claimed in rows:
        assert 0 <= busy <= capacity, session_id
        assert busy == claimed, session_id
    drifted = look.execute(
        "SELECT m.session_id, m.model FROM fleet_models m LEFT JOIN fleet f USING (session_id) CROSS JOIN LATERAL "
        "(SELECT count(*) AS requests, coalesce(sum(output_tokens), 0) AS tokens FROM claims c "
        " WHERE c.session_id = m.session_id AND c.model = m.model) c "
        "WHERE (m.busy, m.requests_model, m.output_tokens_model) IS DISTINCT FROM (f.busy, c.requests, c.tokens)"
    ).fetchall()
    assert drifted == []


class RecordingMailbox:
    """Keeps every notice; a gateway in ``gone`` cannot be reached."""

    def __init__(self) -> None:
        self.notices: list[tuple[UUID, Notice]] = []
        self.gone: set[UUID] = set()

    def deliver(self, gateway_id: UUID, notice: Notice) -> None:
        if gateway_id in self.gone:
            raise GatewayUnreachable
        self.notices.append((gateway_id, notice))

    def take(self) -> list[Notice]:
        """What came since the last look."""
        taken, self.notices = self.notices, []
        return [notice for _, notice in taken]
