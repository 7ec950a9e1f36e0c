"""Which machine serves a request: eligibility gates with named reasons, the millisecond cost model, the choice.

Pure functions over snapshots. Source: provider protocol, section 9; the lowest cost wins.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from random import Random

import msgspec

TRUST_RANK = {"none": 0, "self_signed": 1, "hardware": 2}


class Reason(StrEnum):
    """Why a machine cannot take a request. The texts are for its operator."""

    MODEL_NOT_OFFERED = "the machine does not offer this model"
    UNTRUSTED = "the machine broke a rule of the protocol; restart the agent to register again"
    DRAINING = "the agent is draining and takes no new work"
    TRUST_TOO_LOW = "the trust level is below this network's minimum"
    RUNTIME_UNVERIFIED = "the runtime does not match a known release; update the agent"
    NO_ENCRYPTION_KEY = "the agent sent no valid encryption key"
    NOT_PRIVATE = "the agent does not run text in its own hardened process or does not encrypt its answers"
    CHALLENGE_STALE = "no attestation challenge was passed recently"
    FULL = "every slot is taken"
    SLOT_UNAVAILABLE = "the engine crashed or is reloading"
    OVERHEATED = "the machine is critically hot"
    OUT_OF_MEMORY = "the model and this request do not fit the free memory"
    EXCLUDED = "the machine already failed this request"


class SlotState(msgspec.Struct, frozen=True):
    state: str
    num_running: int = 0
    num_waiting: int = 0
    max_tokens_potential: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway knows of one connected machine. ``models`` maps each offered id to its size in bytes,
    ``capacity`` is how many requests it takes at once, ``signing_key`` is the attested public key or empty, times are
    Unix seconds, memory is GiB."""

    session_id: str
    machine_id: str
    gateway_id: str
    account_id: str
    provider_key: str
    trust_level: str
    untrusted: bool
    draining: bool
    runtime_verified: bool
    private: bool
    challenge_passed_at: float
    capacity: int
    models: dict[str, int]
    context_lengths: dict[str, int]
    slots: dict[str, SlotState]
    decode_tps: float
    prefill_tps: float
    memory_bandwidth_gbs: float
    memory_pressure: float
    cpu_usage: float
    thermal_state: str
    gpu_memory_active_gb: float
    total_memory_gb: float
    chip: str
    machine_model: str
    signing_key: str
    quantization: dict[str, str]
    secure_enclave: bool = False


class Load(msgspec.Struct, frozen=True):
    """The coordinator's own count of what is in flight on a machine."""

    requests_all: int = 0
    requests_model: int = 0
    output_tokens_model: int = 0


class Candidate(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    load: Load


class Demand(msgspec.Struct, frozen=True):
    """What is asked for: estimates in tokens, and sessions that already failed this request."""

    model: str
    prompt_tokens: int
    output_tokens: int
    excluded: frozenset[str] = frozenset()


class Policy(msgspec.Struct, frozen=True):
    """The gates that differ between networks, and every constant of the cost model."""

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
    near_tie_ms: float = 3_000.0


class Cost(msgspec.Struct, frozen=True):
    """Every term of one machine's cost, in milliseconds."""

    slot_state: float
    depth: float
    pending: float
    backlog: float
    prefill: float
    decode: float
    memory_pressure: float
    cpu: float
    gpu_memory: float
    thermal: float

    @property
    def total_ms(self) -> float:
        return math.fsum(msgspec.structs.astuple(self))


class Choice(msgspec.Struct, frozen=True):
    candidate: Candidate
    cost: Cost


def capacity_of(total_memory_gb: float, slot_concurrency: Sequence[int], *, reported: bool) -> int:
    """How many requests a machine takes at once.

    An agent that says how many its engines batch is believed up to 64; one that only reports memory gets the tier of
    its size; one that never reported gets 4.
    """
    if slot_concurrency and all(slot_concurrency):
        return max(1, min(64, sum(slot_concurrency)))
    if not reported:
        return 4
    for size_gb, slots in ((24, 2), (48, 4), (96, 6), (128, 8)):
        if total_memory_gb <= size_gb:
            return slots
    return 12


def reasons_against(
    candidate: Candidate, demand: Demand, policy: Policy, *, now: float, size_gb: float = 0.0
) -> tuple[Reason, ...]:
    """Every gate that keeps this machine from this request; empty when it is eligible."""
    machine, load = candidate.snapshot, candidate.load
    slot = machine.slots.get(demand.model)
    checks = (
        (Reason.MODEL_NOT_OFFERED, demand.model not in machine.models),
        (Reason.UNTRUSTED, machine.untrusted),
        (Reason.DRAINING, machine.draining),
        (Reason.TRUST_TOO_LOW, TRUST_RANK.get(machine.trust_level, -1) < TRUST_RANK[policy.minimum_trust]),
        (Reason.RUNTIME_UNVERIFIED, not (machine.runtime_verified or policy.development)),
        (Reason.NO_ENCRYPTION_KEY, not machine.provider_key),
        (Reason.NOT_PRIVATE, not machine.private),
        (Reason.CHALLENGE_STALE, now - machine.challenge_passed_at > policy.challenge_age_seconds_max),
        (Reason.FULL, load.requests_all >= machine.capacity),
        (Reason.SLOT_UNAVAILABLE, slot is not None and slot.state in ("crashed", "reloading")),
        (Reason.OVERHEATED, machine.thermal_state == "critical"),
        (Reason.OUT_OF_MEMORY, not _fits(machine, slot, demand, policy, size_gb)),
        (Reason.EXCLUDED, machine.session_id in demand.excluded),
    )
    return tuple(reason for reason, holds in checks if holds)


def _fits(machine: Snapshot, slot: SlotState | None, demand: Demand, policy: Policy, size_gb: float) -> bool:
    if size_gb <= 0 or machine.total_memory_gb <= 0:
        return True
    weights = 0.0 if slot is not None and slot.state == "running" else size_gb
    tokens = min(demand.prompt_tokens + demand.output_tokens, 16 * 2**20)
    needed = weights + tokens * policy.kv_bytes_per_token / 2**30
    return machine.total_memory_gb - machine.gpu_memory_active_gb >= needed


def cost_of(candidate: Candidate, demand: Demand, policy: Policy) -> Cost:
    """The machine's cost for this request, term by term."""
    machine, load = candidate.snapshot, candidate.load
    slot = machine.slots.get(demand.model)
    running, waiting, potential = (slot.num_running, slot.num_waiting, slot.max_tokens_potential) if slot else (0, 0, 0)
    decode_tps = machine.decode_tps or math.sqrt(machine.memory_bandwidth_gbs) or 1.0
    prefill_tps = machine.prefill_tps or policy.prefill_ratio * decode_tps
    effective_tps = max(1.0, decode_tps / (1 + policy.batch_slowdown * running))
    queued_tokens = waiting * demand.output_tokens
    unseen_tokens = max(0, load.output_tokens_model - potential - queued_tokens)
    gpu_share = machine.gpu_memory_active_gb / machine.total_memory_gb if machine.total_memory_gb > 0 else 0.0
    return Cost(
        slot_state=_slot_state_ms(slot, policy),
        depth=policy.depth_ms * max(load.requests_model, running + waiting),
        pending=policy.pending_ms * load.requests_all,
        backlog=1000.0 * (potential + queued_tokens + unseen_tokens) / effective_tps,
        prefill=1000.0 * demand.prompt_tokens / prefill_tps,
        decode=1000.0 * demand.output_tokens / effective_tps,
        memory_pressure=policy.memory_pressure_ms * machine.memory_pressure,
        cpu=policy.cpu_ms * machine.cpu_usage,
        gpu_memory=policy.gpu_memory_ms * min(1.0, max(0.0, gpu_share)),
        thermal={"fair": policy.thermal_fair_ms, "serious": policy.thermal_serious_ms}.get(machine.thermal_state, 0.0),
    )


def _slot_state_ms(slot: SlotState | None, policy: Policy) -> float:
    if slot is None:
        return policy.slot_unknown_ms
    if slot.state in ("running", "idle", ""):
        return 0.0
    return policy.slot_unloaded_ms if slot.state == "idle_shutdown" else policy.slot_unknown_ms


def choose(
    candidates: Iterable[Candidate],
    demand: Demand,
    policy: Policy,
    random: Random,
    *,
    now: float,
    size_gb: float = 0.0,
    passed_over: Collection[str] = (),
) -> Choice | None:
    """The machine for this request, or None when none is eligible.

    Among all within ``near_tie_ms`` of the lowest cost, the shortest queue for the model wins, then the fewest
    requests, then chance. ``passed_over`` are sessions whose claim just failed.
    """
    priced = [
        Choice(candidate, cost_of(candidate, demand, policy))
        for candidate in candidates
        if candidate.snapshot.session_id not in passed_over
        and not reasons_against(candidate, demand, policy, now=now, size_gb=size_gb)
    ]
    if not priced:
        return None
    best_ms = min(choice.cost.total_ms for choice in priced)
    near = [choice for choice in priced if choice.cost.total_ms <= best_ms + policy.near_tie_ms]
    shortest = min((choice.cost.depth, choice.candidate.load.requests_all) for choice in near)
    return random.choice(
        [choice for choice in near if (choice.cost.depth, choice.candidate.load.requests_all) == shortest]
    )
