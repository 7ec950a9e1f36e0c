"""The gates that differ between networks, and every constant of routing."""

from __future__ import annotations

import msgspec


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Units stand in the names; ``batch_slowdown`` is a share for each running request."""

    minimum_trust: str = "hardware"
    development: bool = False
    challenge_age_seconds_max: float = 360.0
    kv_bytes_per_token: int = 400_000
    depth_ms: float = 3_000.0
    pending_ms: float = 750.0
    batch_slowdown: float = 0.27
    prefill_ratio: float = 4.0
    memory_pressure_ms: float = 4_000.0
    cpu_ms: float = 1_500.0
    gpu_memory_ms: float = 5_000.0
    thermal_fair_ms: float = 2_000.0
    thermal_serious_ms: float = 8_000.0
    slot_unknown_ms: float = 2_500.0
    slot_unloaded_ms: float = 20_000.0
    model_swap_ms: float = 5_000.0
    """What it costs others when a loaded model is given up to make room."""

    reputation_ms: float = 2_000.0
    """What a machine of reputation 0 costs; one of reputation 1 costs nothing."""

    near_tie_ms: float = 3_000.0

    breaker_failures: int = 3
    """So many failures in a row put a machine aside."""

    breaker_seconds: float = 15.0
    breaker_seconds_max: float = 300.0
    """How long the first time, doubled with each failed probe, and how long at most."""
