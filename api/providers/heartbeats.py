"""Which heartbeats are news. Most say what the one before said, and nobody needs to hear that again."""

from __future__ import annotations

from domain.protocol import BackendCapacity, Heartbeat

MEMORY_PRESSURE_STEP = 0.05
CPU_USAGE_STEP = 0.1
MEMORY_GB_STEP = 0.25


def is_urgent(before: Heartbeat, now: Heartbeat) -> bool:
    """Whether the machine became able or unable to do something."""
    return (
        before.status == "draining"
        or now.status == "draining"
        or before.system_metrics.thermal_state != now.system_metrics.thermal_state
        or (
            before.backend_capacity != now.backend_capacity
            and _abilities(before.backend_capacity) != _abilities(now.backend_capacity)
        )
    )


def is_news(before: Heartbeat, now: Heartbeat) -> bool:
    """Whether routing would estimate another time for it."""
    old, new = before.system_metrics, now.system_metrics
    return (
        abs(new.memory_pressure - old.memory_pressure) >= MEMORY_PRESSURE_STEP
        or abs(new.cpu_usage - old.cpu_usage) >= CPU_USAGE_STEP
        or (
            before.backend_capacity != now.backend_capacity
            and (
                _work(before.backend_capacity) != _work(now.backend_capacity)
                or abs(_memory_gb(now.backend_capacity) - _memory_gb(before.backend_capacity)) >= MEMORY_GB_STEP
            )
        )
    )


def _abilities(capacity: BackendCapacity | None) -> object:
    if capacity is None:
        return None
    return capacity.total_memory_gb, [(slot.model, slot.state, slot.max_concurrency) for slot in capacity.slots]


def _work(capacity: BackendCapacity | None) -> object:
    slots = capacity.slots if capacity else ()
    return [(slot.num_running, slot.num_waiting, slot.max_tokens_potential) for slot in slots]


def _memory_gb(capacity: BackendCapacity | None) -> float:
    return capacity.gpu_memory_active_gb if capacity else 0.0
