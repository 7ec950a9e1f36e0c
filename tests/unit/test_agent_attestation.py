"""What the agent signs: honest, fresh, and byte for byte what is sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from adapters.crypto import signing
from agent.attestation import answer_challenge, build_attestation
from agent.identity import Identity
from agent.posture import Posture
from domain import protocol

IDENTITY = Identity.of(ec.generate_private_key(ec.SECP256R1()))
NOW = datetime(2026, 5, 1, 12, 0, 0, 999, tzinfo=UTC)


class Envelope(msgspec.Struct):
    attestation: msgspec.Raw
    signature: str


def build(posture: Posture) -> Envelope:
    hardware = protocol.Hardware(machine_model="linux-x86_64", chip_name="Some/Chip")
    return msgspec.json.decode(build_attestation(IDENTITY, hardware, posture, NOW), type=Envelope)


def test_the_signature_covers_the_bytes_as_they_are_sent() -> None:
    envelope = build(Posture())
    signing.verify(IDENTITY.signing_public, envelope.signature, bytes(envelope.attestation))


def test_a_software_key_is_called_one_and_nothing_unmeasured_is_claimed() -> None:
    blob = json.loads(bytes(build(Posture()).attestation))
    assert blob["keyStorage"] == "software"
    assert blob["secureEnclaveAvailable"] is False
    for name in ("authenticatedRootEnabled", "sipEnabled", "secureBootEnabled", "rdmaDisabled"):
        assert blob[name] is False


def test_measured_protections_are_reported() -> None:
    blob = json.loads(bytes(build(Posture(True, True, True, True)).attestation))
    for name in ("authenticatedRootEnabled", "sipEnabled", "secureBootEnabled", "rdmaDisabled"):
        assert blob[name] is True
    assert blob["secureEnclaveAvailable"] is False


def test_the_blob_binds_both_keys_and_the_time_and_is_canonical() -> None:
    raw = bytes(build(Posture()).attestation)
    blob = json.loads(raw)
    assert blob["encryptionPublicKey"] == IDENTITY.box_public
    assert blob["publicKey"] == IDENTITY.signing_public
    assert blob["timestamp"] == "2026-05-01T12:00:00Z"
    assert raw == json.dumps(blob, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_challenge_is_answered_with_both_signatures_over_what_is_reported() -> None:
    challenge = protocol.AttestationChallenge("bm9uY2U=", "2026-05-01T12:00:00Z")
    answer = answer_challenge(challenge, IDENTITY, Posture(rdma_disabled=True), {"tiny": "d" * 64}, "d" * 64)
    signing.verify(IDENTITY.signing_public, answer.signature, b"bm9uY2U=2026-05-01T12:00:00Z")
    status = protocol.canonical_status(answer, challenge.timestamp)
    signing.verify(IDENTITY.signing_public, answer.status_signature, status)
    assert json.loads(status) == {
        "nonce": "bm9uY2U=",
        "timestamp": "2026-05-01T12:00:00Z",
        "hypervisor_active": False,
        "rdma_disabled": True,
        "sip_enabled": False,
        "secure_boot_enabled": False,
        "active_model_hash": "d" * 64,
        "model_hashes": {"tiny": "d" * 64},
    }
    assert answer.public_key == IDENTITY.box_public


def test_false_values_survive_the_wire() -> None:
    challenge = protocol.AttestationChallenge("bm9uY2U=", "2026-05-01T12:00:00Z")
    answer = answer_challenge(challenge, IDENTITY, Posture(), {}, "")
    assert protocol.decode_from_provider(protocol.encode(answer)) == answer
    assert '"sip_enabled":false' in protocol.encode(answer)
