"""What a machine says of itself, checked and clamped (provider protocol, section 3.1; attestation, sections 3 and
4)."""

from __future__ import annotations

import math
import secrets
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from api.ports import Sealing
from domain.machines import machine_id_of
from domain.protocol import BackendCapacity, Heartbeat, PrivacyCapabilities, Register
from domain.routing import SlotState, capacity_of

ACCEPTED_BACKENDS = frozenset({"inprocess-mlx"})
ATTESTATION_AGE_MAX = timedelta(hours=24)
ATTESTATION_AHEAD_MAX = timedelta(minutes=2)

DECODE_TPS_MAX = 500.0
PREFILL_TPS_MAX = 5_000.0
BANDWIDTH_GBS_MAX = 2_000.0
MEMORY_GB_MAX = 1_024.0
CORES_MAX = 4_096
REQUESTS_MAX = 10_000
TOKENS_POTENTIAL_MAX = 1_000_000


class SignedBlob(msgspec.Struct, frozen=True):
    """The envelope; the blob's signature covers its bytes as they were sent."""

    attestation: msgspec.Raw
    signature: str


class Blob(msgspec.Struct, frozen=True, rename="camel"):
    """The members that are decided on here."""

    public_key: str
    timestamp: str
    encryption_public_key: str = ""
    serial_number: Annotated[str, msgspec.Meta(max_length=64)] = ""
    secure_enclave_available: bool = False
    sip_enabled: bool = False
    secure_boot_enabled: bool = False


class Identity(msgspec.Struct, frozen=True):
    """Who a machine is. ``signing_key`` is empty for a machine without a valid attestation; ``problem`` says why.
    ``serial`` is what the machine signed as its serial number, or empty."""

    machine_id: str
    signing_key: str
    secure_enclave: bool
    trust_level: str
    problem: str
    serial: str = ""


def identify(register: Register, sealing: Sealing, now: datetime) -> Identity:
    """Verify the attestation of a registration.

    A software key identifies a machine but earns no trust. A connection without a valid attestation has an identity of
    its own, because nothing proves that it is anybody's.
    """
    try:
        blob = _verified(register, sealing, now)
    except ValueError as problem:
        machine_id = machine_id_of(b"unattested:" + secrets.token_bytes(16))
        return Identity(machine_id, "", False, "none", str(problem))
    genuine = blob.secure_enclave_available and blob.sip_enabled and blob.secure_boot_enabled
    return Identity(
        machine_id=machine_id_of(sealing.raw_key(blob.public_key)),
        signing_key=blob.public_key,
        secure_enclave=blob.secure_enclave_available,
        trust_level="self_signed" if genuine else "none",
        problem="" if genuine else "the signing key is kept in software, or SIP or Secure Boot is not in effect",
        serial=blob.serial_number,
    )


def _verified(register: Register, sealing: Sealing, now: datetime) -> Blob:
    """Raises ValueError with the reason why the attestation does not hold."""
    if isinstance(register.attestation, msgspec.UnsetType):
        raise ValueError("no attestation was sent")
    try:
        envelope = msgspec.json.decode(register.attestation, type=SignedBlob)
        blob = msgspec.json.decode(envelope.attestation, type=Blob)
        made_at = datetime.fromisoformat(blob.timestamp)
    except (msgspec.DecodeError, ValueError):
        raise ValueError("the attestation cannot be read") from None
    try:
        sealing.verify(blob.public_key, envelope.signature, bytes(envelope.attestation))
    except ValueError:
        raise ValueError("the attestation's signature does not verify") from None
    if blob.encryption_public_key != register.public_key:
        raise ValueError("the attestation names another encryption key")
    if made_at.tzinfo is None or not now - ATTESTATION_AGE_MAX <= made_at <= now + ATTESTATION_AHEAD_MAX:
        raise ValueError("the attestation is too old or from the future; check the machine's clock")
    return blob


def is_private(register: Register, *, development: bool) -> bool:
    """Whether text may be sent there. Development mode waives the posture, never the encryption."""
    if not register.encrypted_response_chunks or register.backend not in ACCEPTED_BACKENDS:
        return False
    capabilities = register.privacy_capabilities
    return development or all(getattr(capabilities, name) for name in _REQUIRED_CAPABILITIES)


_REQUIRED_CAPABILITIES = tuple(
    name for name in PrivacyCapabilities.__struct_fields__ if name not in ("sip_enabled", "hypervisor_active")
)


def clamp(value: float, high: float) -> float:
    """A reported number inside of 0 to ``high``; what is no number is 0."""
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return min(max(value, 0.0), high)


def slots_of(capacity: BackendCapacity | None) -> dict[str, SlotState]:
    return {
        slot.model: SlotState(
            state=slot.state,
            num_running=min(max(0, slot.num_running), REQUESTS_MAX),
            num_waiting=min(max(0, slot.num_waiting), REQUESTS_MAX),
            max_tokens_potential=min(max(0, slot.max_tokens_potential), TOKENS_POTENTIAL_MAX),
            max_concurrency=min(max(0, slot.max_concurrency), REQUESTS_MAX),
        )
        for slot in (capacity.slots if capacity else ())
    }


def concurrency_of(register: Register, heartbeat: Heartbeat | None) -> int:
    """How many requests the machine takes at once."""
    reported = heartbeat.backend_capacity if heartbeat else None
    return capacity_of(
        (reported.total_memory_gb if reported else 0.0) or register.hardware.memory_gb,
        [slot.max_concurrency for slot in reported.slots] if reported else [],
        reported=reported is not None,
    )


def hardware_facts(register: Register) -> dict[str, str | int]:
    """What the log keeps of the hardware: no serial number, no floats."""
    hardware = register.hardware
    return {
        "machine_model": hardware.machine_model[:100],
        "chip_name": hardware.chip_name[:100],
        "chip_family": hardware.chip_family[:20],
        "chip_tier": hardware.chip_tier[:20],
        "memory_gb": int(clamp(hardware.memory_gb, MEMORY_GB_MAX)),
        "cpu_cores": int(clamp(hardware.cpu_cores.total, CORES_MAX)),
        "gpu_cores": int(clamp(hardware.gpu_cores, CORES_MAX)),
    }
