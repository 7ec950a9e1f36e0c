"""Signed statements about this machine: the blob of a registration and the answer to a challenge.

Source: attestation, sections 3, 6 and 13. The signing key lives in a file, and both statements say so.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from agent.identity import Identity
from agent.posture import Posture
from domain.protocol import AttestationChallenge, AttestationResponse, Hardware, canonical_status, challenge_message


def build_attestation(identity: Identity, hardware: Hardware, posture: Posture, now: datetime) -> msgspec.Raw:
    """The value of ``register.attestation``: the blob's bytes as they were signed, and the signature over them.

    ``now`` is aware; a blob is built anew for each connection so that its time is fresh.
    """
    blob = msgspec.json.encode(
        {
            "authenticatedRootEnabled": posture.authenticated_root,
            "chipName": hardware.chip_name,
            "encryptionPublicKey": identity.box_public,
            "hardwareModel": hardware.machine_model,
            "keyStorage": "software",
            "osVersion": platform.mac_ver()[0] if sys.platform == "darwin" else platform.release(),
            "publicKey": identity.signing_public,
            "rdmaDisabled": posture.rdma_disabled,
            "secureBootEnabled": posture.secure_boot_enabled,
            "secureEnclaveAvailable": False,
            "sipEnabled": posture.sip_enabled,
            "timestamp": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        order="sorted",
    )
    return envelope(blob, identity.sign(blob))


def envelope(blob: bytes, signature: str) -> msgspec.Raw:
    """Blob and signature side by side, the blob's bytes untouched, because a re-serialised blob verifies nowhere."""
    return msgspec.Raw(b'{"attestation":' + blob + b',"signature":' + msgspec.json.encode(signature) + b"}")


def answer_challenge(
    challenge: AttestationChallenge,
    identity: Identity,
    posture: Posture,
    model_hashes: Mapping[str, str],
    active_model_hash: str,
) -> AttestationResponse:
    """Both signatures over a challenge and the posture measured for it.

    ``model_hashes`` are the fingerprints taken when the models were loaded; ``active_model_hash`` is empty before the
    first request.
    """
    response = AttestationResponse(
        nonce=challenge.nonce,
        signature=identity.sign(challenge_message(challenge.nonce, challenge.timestamp)),
        public_key=identity.box_public,
        # The agent makes no virtual machine around itself.
        hypervisor_active=False,
        rdma_disabled=posture.rdma_disabled,
        sip_enabled=posture.sip_enabled,
        secure_boot_enabled=posture.secure_boot_enabled,
        active_model_hash=active_model_hash,
        model_hashes=dict(model_hashes),
    )
    status = canonical_status(response, challenge.timestamp)
    return msgspec.structs.replace(response, status_signature=identity.sign(status))
