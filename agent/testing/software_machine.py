"""A machine without hardware: its keys, its registration, and its answer to a challenge.

Tests and benchmarks build machines on it that speak the real protocol without an engine.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.public import PrivateKey

from adapters.crypto import box, signing
from domain import protocol
from domain.kinds import TEXT, ModelKind
from domain.protocol import AttestationChallenge, AttestationResponse, Hardware, OfferedModel, Register


class SoftwareMachine:
    """Both keys live in software, which development mode accepts."""

    def __init__(self, signing_key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self.signing_key = signing_key or ec.generate_private_key(ec.SECP256R1())
        self.secret = PrivateKey.generate()
        self.public_key = box.public_key_text(self.secret)

    def register(
        self,
        model: str,
        *,
        kind: ModelKind = TEXT,
        auth_token: str = "",
        private_only: bool = False,
        genuine: bool = False,
    ) -> Register:
        """With ``genuine`` it says that its key is kept in hardware, which earns it the trust level ``self_signed``."""
        blob = msgspec.json.encode(
            {
                "encryptionPublicKey": self.public_key,
                "keyStorage": "secure-enclave" if genuine else "software",
                "publicKey": signing.public_key_text(self.signing_key),
                "secureBootEnabled": genuine,
                "secureEnclaveAvailable": genuine,
                "sipEnabled": genuine,
                "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
        envelope = b'{"attestation":%b,"signature":"%b"}' % (blob, signing.sign(self.signing_key, blob).encode())
        return Register(
            hardware=Hardware(machine_model="Test1,1", chip_name="Test chip", memory_gb=64),
            models=(OfferedModel(model, 1_000_000, "llama", "none", context_length=1024, kind=kind),),
            backend="inprocess-mlx",
            version="0.1.0",
            public_key=self.public_key,
            encrypted_response_chunks=True,
            attestation=msgspec.Raw(envelope),
            decode_tps=100.0,
            prefill_tps=1000.0,
            auth_token=auth_token,
            private_only=private_only,
        )

    def answer(self, challenge: AttestationChallenge) -> AttestationResponse:
        unsigned = AttestationResponse(
            nonce=challenge.nonce, signature="", public_key=self.public_key, sip_enabled=False, rdma_disabled=True
        )
        message = protocol.challenge_message(challenge.nonce, challenge.timestamp)
        return msgspec.structs.replace(
            unsigned,
            signature=signing.sign(self.signing_key, message),
            status_signature=signing.sign(self.signing_key, protocol.canonical_status(unsigned, challenge.timestamp)),
        )

    def channel(self, coordinator_key: str) -> box.SealedChannel:
        """The channel of one job, to the key that its request names."""
        return box.SealedChannel(self.secret, box.parse_public_key(coordinator_key))
