from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.providers.heartbeats import is_news, is_urgent
from domain.protocol import BackendCapacity, Heartbeat, SessionStats, Slot, SystemMetrics

SLOT = Slot("model", "running", num_running=1, max_tokens_potential=256, max_concurrency=4)
CAPACITY = BackendCapacity(slots=(SLOT,), gpu_memory_active_gb=6.0, total_memory_gb=64.0)
USUAL = Heartbeat("serving", SessionStats(1, 100), SystemMetrics(0.4, 0.2, "nominal"), backend_capacity=CAPACITY)


def other(**changes: Any) -> Heartbeat:
    return msgspec.structs.replace(USUAL, **changes)


def slot(**changes: Any) -> Heartbeat:
    changed = msgspec.structs.replace(CAPACITY, slots=(msgspec.structs.replace(SLOT, **changes),))
    return other(backend_capacity=changed)


@pytest.mark.parametrize(
    "same",
    [
        other(stats=SessionStats(2, 900)),
        other(system_metrics=SystemMetrics(0.44, 0.29, "nominal")),
        other(backend_capacity=msgspec.structs.replace(CAPACITY, gpu_memory_active_gb=6.2, gpu_memory_peak_gb=9.0)),
        slot(active_tokens=900),
        other(active_model="model", warm_models=("model",)),
    ],
)
def test_what_changes_no_decision_is_not_worth_writing(same: Heartbeat) -> None:
    assert not is_news(USUAL, same)
    assert not is_urgent(USUAL, same)


@pytest.mark.parametrize(
    "news",
    [
        other(system_metrics=SystemMetrics(0.46, 0.2, "nominal")),
        other(system_metrics=SystemMetrics(0.4, 0.31, "nominal")),
        other(backend_capacity=msgspec.structs.replace(CAPACITY, gpu_memory_active_gb=6.5)),
        slot(num_running=2),
        slot(num_waiting=1),
        slot(max_tokens_potential=0),
    ],
)
def test_what_changes_an_estimate_goes_out_with_the_next_tick(news: Heartbeat) -> None:
    assert is_news(USUAL, news)
    assert not is_urgent(USUAL, news)


@pytest.mark.parametrize(
    "urgent",
    [
        other(status="draining"),
        other(system_metrics=SystemMetrics(0.4, 0.2, "critical")),
        slot(state="crashed"),
        slot(max_concurrency=8),
        other(backend_capacity=None),
        other(backend_capacity=msgspec.structs.replace(CAPACITY, slots=())),
    ],
)
def test_what_a_machine_became_unable_or_able_to_do_is_written_at_once(urgent: Heartbeat) -> None:
    assert is_urgent(USUAL, urgent)
    assert is_urgent(urgent, USUAL)
