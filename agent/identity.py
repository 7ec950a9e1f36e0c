"""The machine's two keys (provider protocol, section 5.1; provider agent, section 15).

The X25519 key that requests are sealed to is new in each process and never leaves its memory. The P-256 key that signs
attestations and answers is the machine's identity and persists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.public import PrivateKey

from adapters.crypto import box, signing
from agent.errors import IdentityUnusable
from agent.files import create_private, tighten


@dataclass(frozen=True, slots=True)
class Identity:
    """``box_public`` is base64 of 32 bytes, ``signing_public`` base64 of the 64-byte point."""

    box_secret: PrivateKey = field(repr=False)
    signing_key: ec.EllipticCurvePrivateKey = field(repr=False)
    box_public: str
    signing_public: str

    @classmethod
    def of(cls, signing_key: ec.EllipticCurvePrivateKey, box_secret: PrivateKey | None = None) -> Identity:
        secret = box_secret or PrivateKey.generate()
        return cls(secret, signing_key, box.public_key_text(secret), signing.public_key_text(signing_key))

    def sign(self, message: bytes) -> str:
        """Base64 of the DER signature over SHA-256 of ``message``."""
        return signing.sign(self.signing_key, message)

    def channel(self, peer_public: str) -> box.SealedChannel:
        """The sealed channel to one session key.

        Raises:
            SealingError: ``peer_public`` is not a usable X25519 key.
        """
        return box.SealedChannel(self.box_secret, box.parse_public_key(peer_public))


def load_identity(home: Path) -> Identity:
    """Read ``identity.pem``, or create it the first time, and make a fresh X25519 key.

    Raises:
        IdentityUnusable: the file is there but holds no P-256 key. It is never replaced, because a new key makes the
            coordinator see a new machine.
    """
    path = home / "identity.pem"
    if not path.exists():
        _create(path)
    tighten(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityUnusable(
            f"{path} does not hold a P-256 private key. Restore it from a backup, or move it away to start as a new "
            "machine."
        )
    return Identity.of(key)


def _create(path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_private(path, pem)
