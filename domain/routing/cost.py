"""The millisecond cost model: how long a request would take on a machine (provider protocol, section 9.5)."""

from __future__ import annotations

import math

import msgspec

from domain.routing.demand import Demand
from domain.routing.facts import Candidate, SlotState, Snapshot
from domain.routing.gates import needs_swap
from domain.routing.health import reputation
from domain.routing.policy import Policy


class Cost(msgspec.Struct, frozen=True):
    """Every term of one machine's cost, in milliseconds."""

    slot_state: float
    model_swap: float
    depth: float
    pending: float
    backlog: float
    prefill: float
    decode: float
    memory_pressure: float
    cpu: float
    gpu_memory: float
    thermal: float
    reputation: float

    @property
    def total_ms(self) -> float:
        return math.fsum(msgspec.structs.astuple(self))

    def terms(self) -> dict[str, float]:
        """Each term by its name, in the order of the model."""
        return msgspec.structs.asdict(self)


def speed_of(machine: Snapshot, policy: Policy) -> tuple[float, float]:
    """Tokens a second when idle: generated, and read."""
    decode_tps = machine.decode_tps or math.sqrt(machine.memory_bandwidth_gbs) or 1.0
    return decode_tps, machine.prefill_tps or policy.prefill_ratio * decode_tps


def cost_of(candidate: Candidate, demand: Demand, policy: Policy) -> Cost:
    """The machine's cost for this request, term by term."""
    machine, load = candidate.snapshot, candidate.load
    slot = machine.slots.get(demand.model)
    running, waiting, potential = (slot.num_running, slot.num_waiting, slot.max_tokens_potential) if slot else (0, 0, 0)
    decode_tps, prefill_tps = speed_of(machine, policy)
    effective_tps = max(1.0, decode_tps / (1 + policy.batch_slowdown * running))
    queued_tokens = waiting * demand.output_tokens
    unseen_tokens = max(0, load.output_tokens_model - potential - queued_tokens)
    gpu_share = machine.gpu_memory_active_gb / machine.total_memory_gb if machine.total_memory_gb > 0 else 0.0
    thermal = machine.thermal_state
    return Cost(
        slot_state=slot_state_ms(slot, policy),
        model_swap=policy.model_swap_ms if needs_swap(candidate, demand, policy) else 0.0,
        depth=policy.depth_ms * max(load.requests_model, running + waiting),
        pending=policy.pending_ms * load.requests_all,
        backlog=1000.0 * (potential + queued_tokens + unseen_tokens) / effective_tps,
        prefill=1000.0 * demand.prompt_tokens / prefill_tps,
        decode=1000.0 * demand.output_tokens / effective_tps,
        memory_pressure=policy.memory_pressure_ms * machine.memory_pressure,
        cpu=policy.cpu_ms * machine.cpu_usage,
        gpu_memory=policy.gpu_memory_ms * min(1.0, max(0.0, gpu_share)),
        thermal=(
            policy.thermal_fair_ms if thermal == "fair" else policy.thermal_serious_ms if thermal == "serious" else 0.0
        ),
        reputation=policy.reputation_ms * (1.0 - reputation(candidate.health)),
    )


def slot_state_ms(slot: SlotState | None, policy: Policy) -> float:
    """The preference for a machine that has the model loaded."""
    if slot is None:
        return policy.slot_unknown_ms
    if slot.loaded or slot.state == "":
        return 0.0
    return policy.slot_unloaded_ms if slot.state == "idle_shutdown" else policy.slot_unknown_ms
