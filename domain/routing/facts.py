"""What is known of one connected machine: what it says, what the coordinator counted, how it fared so far."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from domain.routing.demand import Constraints
from domain.routing.health import Health

TRUST_RANK = {"none": 0, "self_signed": 1, "hardware": 2}


class SlotState(msgspec.Struct, frozen=True):
    state: str
    num_running: int = 0
    num_waiting: int = 0
    max_tokens_potential: int = 0
    max_concurrency: int = 0
    """How many requests this engine works on at once; 0 when it does not say."""

    @property
    def loaded(self) -> bool:
        return self.state in ("running", "idle")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway knows of one connected machine. ``models`` maps each offered id to its size in bytes,
    ``capacity`` is how many requests it takes at once, ``signing_key`` is the attested public key or empty, ``serial``
    the attested serial number or empty, times are Unix seconds, memory is GiB. ``private`` says that text may be sent
    there, ``private_only`` that its owner's alone may."""

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
    serial: str = ""
    kinds: dict[str, str] = {}
    """What each offered model makes, where that is not text."""

    private_only: bool = False

    def is_own(self, constraints: Constraints) -> bool:
        """Whether the request comes from the machine's owner, who asks for it."""
        return bool(self.account_id) and self.account_id == constraints.own_account


class Load(msgspec.Struct, frozen=True):
    """The coordinator's own count of what is in flight on a machine."""

    requests_all: int = 0
    requests_model: int = 0
    output_tokens_model: int = 0


NEUTRAL = Health()
IDLE = Load()


class Candidate(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    load: Load = IDLE
    health: Health = NEUTRAL


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
