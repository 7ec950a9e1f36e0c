"""Content that rests as ciphertext whose key is in the consumer's credential: whoever has only the database reads
nothing, and not even whether a guessed text is there."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.secret import SecretBox


class CredentialBox:
    """Keys derived from one credential: one for names and fingerprints, one for content."""

    def __init__(self, credential: str, purpose: str) -> None:
        material = HKDF(SHA256(), length=64, salt=None, info=f"darkbloom {purpose} v1".encode()).derive(
            credential.encode()
        )
        self._naming_key = material[:32]
        self._box = SecretBox(material[32:])

    def name_of(self, *parts: bytes) -> bytes:
        """32 bytes that stand for the parts, and that only the credential's holder can compute."""
        length_prefixed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.new(self._naming_key, length_prefixed, hashlib.sha256).digest()

    def seal(self, content: bytes) -> bytes:
        return bytes(self._box.encrypt(content))

    def open(self, sealed: bytes) -> bytes:
        """Raises ValueError when it was not sealed under this credential."""
        try:
            return self._box.decrypt(sealed)
        except CryptoError:
            raise ValueError("not sealed under this credential") from None


class CredentialKey:
    """A key pair that follows from one credential: what is sealed to its public half while the credential is away,
    only the credential opens."""

    def __init__(self, credential: str, purpose: str) -> None:
        secret = HKDF(SHA256(), length=32, salt=None, info=f"darkbloom {purpose} v1".encode()).derive(
            credential.encode()
        )
        self._secret = PrivateKey(secret)
        self.public_key = bytes(self._secret.public_key)

    def open(self, sealed: bytes) -> bytes:
        """Raises ValueError when it was not sealed to this credential."""
        try:
            return SealedBox(self._secret).decrypt(sealed)
        except CryptoError:
            raise ValueError("not sealed to this credential") from None


def seal_to(public_key: bytes, content: bytes) -> bytes:
    return SealedBox(PublicKey(public_key)).encrypt(content)
