"""The coordinator's own X25519 key, to which consumers seal requests (consumer API, section 14).

All gateways of one address hold the same key: from a file of 32 raw bytes, or from a mnemonic.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from adapters.crypto.box import PUBLIC_KEY_BYTES, SealedChannel, SealingError, public_key_text
from adapters.files import is_closed_to_others, replace_file
from domain.errors import DecryptionFailed, InvalidSealedEnvelope, KidMismatch

log = logging.getLogger(__name__)

NONCE_BYTES = 24
PREVIOUS_SECONDS = 24 * 3600.0
"""How long the key before stays valid after a rotation."""

RELOAD_SECONDS = 5.0
"""How soon a running gateway notices a rotation."""

_MNEMONIC_WORDS = (12, 24)


class KeyUnusable(ValueError):
    """The sealing key cannot be used; the message says what to do."""


class TransportKey:
    def __init__(self, secret: bytes) -> None:
        self.secret = PrivateKey(secret)
        self.public_key = public_key_text(self.secret)
        self.kid = hashlib.sha256(bytes(self.secret.public_key)).hexdigest()[:16]


class KeyRing(NamedTuple):
    """The key that is published, and the one before it with the time (Unix seconds) until which it is valid."""

    current: TransportKey
    previous: TransportKey | None = None
    previous_until: float = 0.0


class SealedRequest(NamedTuple):
    """An opened request. ``channel`` seals its answer; ``use`` is 56 bytes that no two requests share."""

    body: bytes
    channel: SealedChannel
    kid: str
    use: bytes


def secret_of_mnemonic(mnemonic: str) -> bytes:
    """32 bytes of an X25519 secret from 12 or 24 words. Raises KeyUnusable for another count."""
    text = mnemonic.strip()
    if len(text.split()) not in _MNEMONIC_WORDS:
        raise KeyUnusable("a mnemonic has 12 or 24 words")
    seed = hashlib.pbkdf2_hmac("sha512", text.encode(), b"mnemonic", 2048)
    return HKDF(SHA256(), length=32, salt=None, info=b"eigeninference-coordinator-e2e-v1").derive(seed)


def ring_of_mnemonics(current: str, previous: str, started_at: float) -> KeyRing:
    """Keys that change when the settings do; ``started_at`` is when this process took them over."""
    before = TransportKey(secret_of_mnemonic(previous)) if previous else None
    return KeyRing(TransportKey(secret_of_mnemonic(current)), before, started_at + PREVIOUS_SECONDS)


class KeyFile:
    """32 raw bytes that others cannot read. Beside it under its name with ``.previous`` stands the key before; that
    file's time is the time of the rotation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._previous = path.with_name(path.name + ".previous")

    def read(self) -> KeyRing:
        """Raises KeyUnusable."""
        current = self._key_in(self.path)
        try:
            rotated_at = self._previous.stat().st_mtime
        except FileNotFoundError:
            return KeyRing(current)
        return KeyRing(current, self._key_in(self._previous), rotated_at + PREVIOUS_SECONDS)

    def rotate(self) -> TransportKey:
        """Make a fresh key, the first one included; the present one stays valid for a day. Raises KeyUnusable."""
        secret = secrets.token_bytes(PUBLIC_KEY_BYTES)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.exists():
            replace_file(self._previous, bytes(self._key_in(self.path).secret))
        replace_file(self.path, secret)
        return TransportKey(secret)

    def _key_in(self, path: Path) -> TransportKey:
        try:
            closed = is_closed_to_others(path)
            secret = path.read_bytes()
        except OSError as error:
            raise KeyUnusable(f"the sealing key {path} cannot be read: {type(error).__name__}") from None
        if not closed:
            raise KeyUnusable(f"others can read the sealing key {path}; run: chmod 600 {path}")
        if len(secret) != PUBLIC_KEY_BYTES:
            raise KeyUnusable(f"the sealing key {path} must have {PUBLIC_KEY_BYTES} raw bytes, not {len(secret)}")
        return TransportKey(secret)


class TransportKeys:
    """The keys of one gateway, read again now and then so that a rotation needs no restart."""

    def __init__(self, read: Callable[[], KeyRing], *, clock: Callable[[], float] = time.time) -> None:
        """Raises KeyUnusable when there is no usable key to begin with."""
        self._read = read
        self._clock = clock
        self._ring = read()
        self._read_at = clock()

    @property
    def current(self) -> TransportKey:
        return self._fresh().current

    def open(self, kid: str, ephemeral_public_key: str, ciphertext: str) -> SealedRequest:
        """Check and open an envelope, in the order of section 14.2.

        Raises:
            KidMismatch: it is sealed to another key, or to one that was replaced more than a day ago.
            InvalidSealedEnvelope: the consumer's key or the ciphertext is not what it should be.
            DecryptionFailed: the box does not open.
        """
        key = self._key_of(kid)
        peer = _base64(ephemeral_public_key, "ephemeral_public_key")
        if len(peer) != PUBLIC_KEY_BYTES:
            raise InvalidSealedEnvelope(f"'ephemeral_public_key' must be {PUBLIC_KEY_BYTES} bytes in base64.")
        sealed = _base64(ciphertext, "ciphertext")
        if len(sealed) < NONCE_BYTES:
            raise InvalidSealedEnvelope(f"'ciphertext' must begin with a nonce of {NONCE_BYTES} bytes.")
        try:
            channel = SealedChannel(key.secret, PublicKey(peer))
            body = channel.open_raw(sealed)
        except SealingError:
            raise DecryptionFailed from None
        return SealedRequest(body, channel, key.kid, peer + sealed[:NONCE_BYTES])

    def wrap(self, secret: bytes) -> tuple[str, bytes]:
        """Seal something to the present key; returns the key's id too."""
        key = self.current
        return key.kid, SealedBox(key.secret.public_key).encrypt(secret)

    def unwrap(self, kid: str, wrapped: bytes) -> bytes:
        """Raises KidMismatch when the key is gone, DecryptionFailed when it was not wrapped by it."""
        try:
            return SealedBox(self._key_of(kid).secret).decrypt(wrapped)
        except CryptoError:
            raise DecryptionFailed from None

    def _key_of(self, kid: str) -> TransportKey:
        ring = self._fresh()
        if kid in ("", ring.current.kid):
            return ring.current
        if ring.previous is not None and kid == ring.previous.kid and self._clock() < ring.previous_until:
            return ring.previous
        raise KidMismatch

    def _fresh(self) -> KeyRing:
        now = self._clock()
        if now - self._read_at >= RELOAD_SECONDS:
            self._read_at = now
            try:
                self._ring = self._read()
            except KeyUnusable as error:
                log.warning("the sealing key stays as it was: %s", error)
        return self._ring


def _base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSealedEnvelope(f"'{name}' is not standard base64.") from None
