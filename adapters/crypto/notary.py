"""The private keys of the checkpoints: Ed25519, in a file of their own, one a line as C2SP writes them.

A line is ``PRIVATE+KEY+name+keyid+base64`` of the signature type and the 32-byte seed. Beside the file, under its name
with ``.signed``, stands the last checkpoint that was signed: what the keys vouched for is remembered where the database
cannot reach it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from adapters.files import is_closed_to_others, replace_file
from domain.transparency.note import ED25519, VerifierKey, check_name, strict_base64

_PREFIX = "PRIVATE+KEY+"


class KeyFileUnusable(ValueError):
    """The key file cannot be used; the message says what to do."""


class Ed25519Signer:
    def __init__(self, name: str, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.key = VerifierKey(name, bytes(self._key.verify_key))

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message).signature

    def private_line(self) -> str:
        encoded = base64.b64encode(ED25519 + bytes(self._key)).decode()
        return f"{_PREFIX}{self.key.name}+{self.key.key_id.hex()}+{encoded}\n"


def verify_ed25519(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


class KeyFileNotary:
    """``origin`` names the log in a key file that is made anew; empty, a random name is taken."""

    def __init__(self, path: Path, origin: str = "") -> None:
        self.path = path
        self._memory = path.with_name(path.name + ".signed")
        self._origin = origin

    def signers(self, *, may_create: bool = False) -> Sequence[Ed25519Signer]:
        """Raises KeyFileUnusable."""
        try:
            closed = is_closed_to_others(self.path)
            text = self.path.read_text()
        except FileNotFoundError:
            if may_create:
                return [self.create()]
            raise KeyFileUnusable(
                f"the key file {self.path} is missing, but this log has published keys: bring the file back"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileUnusable(f"the key file {self.path} cannot be read: {type(error).__name__}") from None
        if not closed:
            raise KeyFileUnusable(f"others can read the key file {self.path}; run: chmod 600 {self.path}")
        found = [_parse_private(line) for line in text.splitlines()]
        signers = [signer for signer in found if signer is not None]
        if not found or len(signers) != len(found) or len({signer.key.name for signer in signers}) != 1:
            raise KeyFileUnusable(f"the key file {self.path} is damaged: each line is a private key of one log")
        return signers

    def create(self) -> Ed25519Signer:
        """Make the file with its first key."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        signer = new_signer(self._origin or f"darkbloom.local/{secrets.token_hex(8)}")
        self.write([signer])
        return signer

    def successor(self) -> Ed25519Signer:
        """A fresh key for the same log. It signs only once it is written."""
        return new_signer(self.signers()[0].key.name)

    def write(self, signers: Sequence[Ed25519Signer]) -> None:
        """Replace the file by these keys, at once and durably."""
        replace_file(self.path, "".join(signer.private_line() for signer in signers).encode())

    def last_signed(self) -> str | None:
        try:
            return self._memory.read_text()
        except FileNotFoundError:
            return None

    def remember(self, signed: str) -> None:
        replace_file(self._memory, signed.encode())


def new_signer(name: str) -> Ed25519Signer:
    """A fresh key. Raises ValueError for a name that a key cannot have."""
    check_name(name)
    return Ed25519Signer(name, secrets.token_bytes(32))


def _parse_private(line: str) -> Ed25519Signer | None:
    name, _, rest = line.removeprefix(_PREFIX).partition("+")
    key_id, _, encoded = rest.partition("+")
    key = strict_base64(encoded)
    if not line.startswith(_PREFIX) or key is None or len(key) != 33 or key[:1] != ED25519:
        return None
    signer = Ed25519Signer(name, key[1:])
    return signer if signer.key.key_id.hex() == key_id else None
