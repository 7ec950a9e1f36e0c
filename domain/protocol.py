"""Every message between the coordinator and a provider agent, typed.

Both sides import this module, so there is one definition of the wire. Frames are WebSocket text frames
that hold one UTF-8 JSON object each; the member ``type`` tells the message. Unknown members are ignored.
Optional members are left out of a frame, never null and never empty.

Source: provider protocol, sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from domain.kinds import EMBEDDING, IMAGE, TEXT, TRANSCRIPTION, ModelKind

PROVIDER_TOKEN_PREFIX = "eigeninference-pt-"

COORDINATOR_INBOUND_BYTES_MAX = 10 * 1024 * 1024
"""A larger frame from a provider closes its connection."""

PROVIDER_INBOUND_BYTES_MAX = 48 * 1024 * 1024
"""A sound of 25 MiB is a third more as base64 in its body, and as much again once the body is sealed."""

HEARTBEAT_INTERVAL_SECONDS = 5.0
PING_INTERVAL_SECONDS = 10.0
PONG_TIMEOUT_SECONDS = 30.0

REASON_SEPARATOR = " | "

ENDPOINTS: Mapping[ModelKind, str] = {
    TEXT: "/v1/chat/completions",
    EMBEDDING: "/v1/embeddings",
    IMAGE: "/v1/images/generations",
    TRANSCRIPTION: "/v1/audio/transcriptions",
}
"""Where each kind of model is asked. A sealed body says it in the member ``endpoint``; one that does not is a chat."""

HEARTBEAT_BEGINS = '{"type":"heartbeat"'
"""How a heartbeat begins whose tag comes first, as ``encode`` writes it."""

STREAM_END = b"data: [DONE]"
"""The text of the last chunk of a streaming answer. It is not part of the response hash."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_PLAIN = r"^[^<>&\u2028\u2029\x00-\x1f\x7f]+$"

ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=_PLAIN)]
"""Encoders write the excluded characters in two ways, which would break a signature over them (attestation, 6.2)."""

ENTRIES_MAX = 64
"""Models of a registration, and slots of a heartbeat."""

ShortText = Annotated[str, msgspec.Meta(max_length=512)]


class CpuCores(msgspec.Struct, frozen=True):
    total: int = 0
    performance: int = 0
    efficiency: int = 0


class Hardware(msgspec.Struct, frozen=True):
    """What the machine says it is. ``memory_gb`` is GiB rounded down, bandwidth is GB/s."""

    machine_model: ShortText = ""
    chip_name: ShortText = ""
    chip_family: ShortText = "Unknown"
    chip_tier: ShortText = "Unknown"
    memory_gb: float = 0
    memory_available_gb: float = 0
    cpu_cores: CpuCores = CpuCores()
    gpu_cores: int = 0
    memory_bandwidth_gbs: float = 0


class OfferedModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model that the machine serves. ``weight_hash`` is the fingerprint over its files, ``model_type`` its
    architecture, ``kind`` what it makes."""

    id: ModelId
    size_bytes: Count
    model_type: ShortText
    quantization: ShortText
    weight_hash: ShortText = ""
    context_length: Count = 0
    kind: ShortText = TEXT


class PrivacyCapabilities(msgspec.Struct, frozen=True):
    """What the agent's process really achieved; nothing here is asserted without being measured."""

    text_backend_inprocess: bool = False
    text_proxy_disabled: bool = False
    python_runtime_locked: bool = False
    dangerous_modules_blocked: bool = False
    sip_enabled: bool = False
    anti_debug_enabled: bool = False
    core_dumps_disabled: bool = False
    env_scrubbed: bool = False
    hypervisor_active: bool = False


class Sealed(msgspec.Struct, frozen=True):
    """A NaCl box: both members are standard base64; the ciphertext is nonce, tag and text."""

    ephemeral_public_key: Annotated[str, msgspec.Meta(max_length=64)]
    ciphertext: str


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cached_tokens`` is the part of the prompt that was remembered, ``reasoning_tokens`` the part of the completion
    that was thought, ``units`` what media is metered in: pixels of images, milliseconds of sound."""

    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0
    units: Count = 0

    def within(self, prompt_tokens: int, completion_tokens: int, units: int) -> Usage:
        """The same with these totals; no part is larger than its whole."""
        cached, reasoning = min(self.cached_tokens, prompt_tokens), min(self.reasoning_tokens, completion_tokens)
        return Usage(prompt_tokens, completion_tokens, cached, reasoning, units)


class SessionStats(msgspec.Struct, frozen=True):
    """Counters since the agent process started. What is below zero counts as nothing."""

    requests_served: int = 0
    tokens_generated: int = 0


class SystemMetrics(msgspec.Struct, frozen=True):
    """``memory_pressure`` and ``cpu_usage`` are shares between 0 and 1."""

    memory_pressure: float = 0.0
    cpu_usage: float = 0.0
    thermal_state: ShortText = "nominal"


class Slot(msgspec.Struct, frozen=True):
    """One loaded (or unloaded) model. ``active_tokens`` sums prompt and generated tokens of the running requests,
    ``max_tokens_potential`` their output limits. ``max_concurrency`` is how many requests the engine batches."""

    model: str
    state: ShortText
    num_running: int = 0
    num_waiting: int = 0
    active_tokens: int = 0
    max_tokens_potential: int = 0
    max_concurrency: int = 0


class BackendCapacity(msgspec.Struct, frozen=True):
    slots: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=ENTRIES_MAX)] = ()
    gpu_memory_active_gb: float = 0.0
    gpu_memory_peak_gb: float = 0.0
    gpu_memory_cache_gb: float = 0.0
    total_memory_gb: float = 0.0


class Register(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="register"):
    """The first message on each connection. ``attestation`` keeps the exact bytes that stood in the frame, because
    its signature covers them. ``private_only`` asks for no work but the owner's."""

    hardware: Hardware
    models: Annotated[tuple[OfferedModel, ...], msgspec.Meta(max_length=ENTRIES_MAX)]
    backend: ShortText
    version: ShortText = ""
    public_key: Annotated[str, msgspec.Meta(max_length=64)] = ""
    encrypted_response_chunks: bool = False
    wallet_address: ShortText = ""
    attestation: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    auth_token: ShortText = ""
    private_only: bool = False
    python_hash: ShortText = ""
    runtime_hash: ShortText = ""
    template_hashes: dict[str, str] = {}
    privacy_capabilities: PrivacyCapabilities = PrivacyCapabilities()


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="heartbeat"):
    status: ShortText
    stats: SessionStats
    system_metrics: SystemMetrics
    active_model: str | None = None
    warm_models: tuple[str, ...] = ()
    backend_capacity: BackendCapacity | None = None


class InferenceAccepted(msgspec.Struct, frozen=True, tag_field="type", tag="inference_accepted"):
    request_id: ShortText


class InferenceResponseChunk(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="inference_response_chunk"
):
    """One sealed piece of output. ``data`` exists only so that plaintext can be recognised as a violation."""

    request_id: ShortText
    encrypted_data: Sealed | None = None
    data: str = ""


class InferenceComplete(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="inference_complete"):
    request_id: ShortText
    usage: Usage
    response_hash: ShortText = ""
    se_signature: ShortText = ""


class InferenceError(msgspec.Struct, frozen=True, tag_field="type", tag="inference_error"):
    """``error`` is short and never holds prompt or output text; ``status_code`` is HTTP-like."""

    request_id: ShortText
    error: Annotated[str, msgspec.Meta(max_length=4096)]
    status_code: int


class AttestationResponse(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="attestation_response"
):
    """The answer to a challenge. A posture member that is absent was not measured."""

    nonce: ShortText
    signature: ShortText
    public_key: ShortText
    status_signature: ShortText = ""
    hypervisor_active: bool | None = None
    rdma_disabled: bool | None = None
    sip_enabled: bool | None = None
    secure_boot_enabled: bool | None = None
    binary_hash: ShortText = ""
    active_model_hash: ShortText = ""
    python_hash: ShortText = ""
    runtime_hash: ShortText = ""
    template_hashes: dict[str, str] = {}
    model_hashes: dict[str, str] = {}


class InferenceRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="inference_request"):
    """``request_id`` is the job id of one attempt. A message without ``encrypted_body`` is refused."""

    request_id: ShortText
    encrypted_body: Sealed | None = None


class Cancel(msgspec.Struct, frozen=True, tag_field="type", tag="cancel"):
    request_id: ShortText


class AttestationChallenge(msgspec.Struct, frozen=True, tag_field="type", tag="attestation_challenge"):
    """``nonce`` is base64 of 32 random bytes; ``timestamp`` is RFC 3339 UTC in whole seconds."""

    nonce: ShortText
    timestamp: ShortText


class RuntimeMismatch(msgspec.Struct, frozen=True):
    component: str
    expected: str
    got: str


class RuntimeStatus(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="runtime_status"):
    verified: bool
    mismatches: tuple[RuntimeMismatch, ...] = ()


class TrustStatus(msgspec.Struct, frozen=True, tag_field="type", tag="trust_status"):
    """Tells the operator the coordinator's verdict: ``reason`` is empty when the machine gets work, else one sentence
    a cause, with what to do, with REASON_SEPARATOR between them."""

    trust_level: str
    status: str
    reason: str


FromProvider = (
    Register
    | Heartbeat
    | InferenceAccepted
    | InferenceResponseChunk
    | InferenceComplete
    | InferenceError
    | AttestationResponse
)
FromCoordinator = InferenceRequest | Cancel | AttestationChallenge | RuntimeStatus | TrustStatus

_encoder = msgspec.json.Encoder()
_from_provider: msgspec.json.Decoder[FromProvider] = msgspec.json.Decoder(FromProvider)
_from_coordinator: msgspec.json.Decoder[FromCoordinator] = msgspec.json.Decoder(FromCoordinator)


class MalformedMessage(ValueError):
    """The frame is not a message of this protocol. The text names the member at fault, never its value."""


def encode(message: FromProvider | FromCoordinator) -> str:
    """One text frame."""
    return _encoder.encode(message).decode()


def decode_from_provider(frame: str | bytes) -> FromProvider:
    try:
        return _from_provider.decode(frame)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedMessage(_without_values(error)) from None


def decode_from_coordinator(frame: str | bytes) -> FromCoordinator:
    try:
        return _from_coordinator.decode(frame)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedMessage(_without_values(error)) from None


def _without_values(error: Exception) -> str:
    # "Invalid value 'x' - at `$.type`" quotes what was sent; only the path and the rule may reach a log.
    text = str(error)
    return f"unknown message or value{text[text.rfind(' - at') :]}" if text.startswith("Invalid value") else text


def billed_pixels(width: int, height: int) -> int:
    """What one image counts for: its pixels, and at least those of 1024x1024."""
    return max(1_048_576, width * height)


def response_hash_input(job_id: str, completion_tokens: int) -> bytes:
    """The bytes that stand before the answer's text under the response hash (provider protocol, section 6).

    The text that follows is every chunk in order with nothing between them and without the end-of-stream chunk.
    """
    return f"{job_id}:{completion_tokens}:".encode()


def challenge_message(nonce: str, timestamp: str) -> bytes:
    """What ``attestation_response.signature`` signs: the nonce in its base64 form, then the timestamp."""
    return (nonce + timestamp).encode()


def canonical_status(response: AttestationResponse, timestamp: str) -> bytes:
    """What ``attestation_response.status_signature`` signs: sorted compact JSON of everything that was reported.

    Source: attestation, section 6.2. Booleans are written when the response carries them, texts and maps when
    they are not empty.
    """
    status: dict[str, object] = {"nonce": response.nonce, "timestamp": timestamp}
    for name in ("hypervisor_active", "rdma_disabled", "sip_enabled", "secure_boot_enabled"):
        value = getattr(response, name)
        if value is not None:
            status[name] = value
    for name in (
        "active_model_hash",
        "binary_hash",
        "python_hash",
        "runtime_hash",
        "model_hashes",
        "template_hashes",
    ):
        value = getattr(response, name)
        if value:
            status[name] = value
    return msgspec.json.encode(status, order="sorted")
