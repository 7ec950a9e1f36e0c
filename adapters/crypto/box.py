"""NaCl boxes between coordinator and provider (provider protocol, section 5).

Every sealed value is ``nonce (24 bytes) || tag (16 bytes) || text``, carried as standard base64.
"""

from __future__ import annotations

import base64
import binascii

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

SEALED_OVERHEAD_BYTES = 40
"""A sealed value is this much longer than its text: 24 bytes of nonce and 16 of tag."""

PUBLIC_KEY_BYTES = 32


class SealingError(ValueError):
    """The sealed value could not be opened. No reason is given beyond the kind, and never any content."""


def public_key_text(key: PrivateKey | PublicKey) -> str:
    public = key.public_key if isinstance(key, PrivateKey) else key
    return base64.b64encode(bytes(public)).decode()


def parse_public_key(text: str) -> PublicKey:
    """Parse standard base64 of exactly 32 bytes.

    Raises:
        SealingError: not base64, another length, or the all-zero key, with which no secret can be agreed.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SealingError("the public key is not base64") from None
    if len(raw) != PUBLIC_KEY_BYTES:
        raise SealingError(f"the public key has {len(raw)} bytes, not {PUBLIC_KEY_BYTES}")
    if not any(raw):
        raise SealingError("the public key is all zero")
    return PublicKey(raw)


class SealedChannel:
    """The shared box of one attempt: X25519 is symmetric, so one key serves both directions.

    Building one costs about ten times as much as sealing a message with it, so it is built once per attempt.
    """

    def __init__(self, own_secret: PrivateKey, peer_public: PublicKey) -> None:
        try:
            self._box = Box(own_secret, peer_public)
        except (CryptoError, RuntimeError):
            # libsodium refuses the points of small order, which lead to an all-zero shared key.
            raise SealingError("no key can be agreed with that public key") from None

    def seal(self, text: bytes) -> str:
        """Seal under a fresh random nonce; returns base64."""
        return base64.b64encode(self._box.encrypt(text)).decode()

    def open(self, sealed: str) -> bytes:
        """Open base64 of a sealed value.

        Raises:
            SealingError: not base64, too short, altered, or sealed by or for somebody else.
        """
        try:
            raw = base64.b64decode(sealed, validate=True)
        except (binascii.Error, ValueError):
            raise SealingError("the ciphertext is not base64") from None
        return self.open_raw(raw)

    def open_raw(self, sealed: bytes) -> bytes:
        """The same for a value that is not in base64.

        Raises:
            SealingError: too short, altered, or sealed by or for somebody else.
        """
        if len(sealed) < SEALED_OVERHEAD_BYTES:
            raise SealingError("the ciphertext is too short")
        try:
            return self._box.decrypt(sealed)
        except CryptoError:
            raise SealingError("the ciphertext does not authenticate") from None
