"""Signed notes (C2SP signed-note): a text, an empty line, and one line for each signature.

Only the form stands here. Whoever signs and whoever checks a signature is passed in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

ED25519 = b"\x01"
"""The signature type of Ed25519 in key ids and verifier keys."""

NOTE_BYTES_MAX = 64 * 1024
SIGNATURES_MAX = 16

_MARK = "— "
_NAME = re.compile(r"[^\s+]+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class MalformedNote(ValueError):
    """This is not a signed note."""


class SignatureInvalid(ValueError):
    """A signature by a known key does not hold: the text or the signature was changed."""


class NotSignedByKey(ValueError):
    """None of the keys that are trusted has signed this note."""


class VerifierKey(NamedTuple):
    """A public key with its name, as C2SP writes it: ``name+keyid+base64``."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell keys of one name apart."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public_key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(ED25519 + self.public_key).decode()}"


class Signer(Protocol):
    @property
    def key(self) -> VerifierKey: ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        ...


class VerifySignature(Protocol):
    def __call__(self, public_key: bytes, signature: bytes, message: bytes, /) -> bool: ...


class Signature(NamedTuple):
    name: str
    key_id: bytes
    signature: bytes


class SignedNote(NamedTuple):
    """``text`` ends with a newline and is what the signatures are over."""

    text: str
    signatures: Sequence[Signature]

    def __str__(self) -> str:
        lines = [
            f"{_MARK}{name} {base64.b64encode(key_id + made).decode()}\n" for name, key_id, made in self.signatures
        ]
        return f"{self.text}\n{''.join(lines)}"


def check_name(name: str) -> None:
    """Raises ValueError for a name that a key cannot have."""
    if not _NAME.fullmatch(name) or _CONTROL.search(name):
        raise ValueError("a key's name is not empty and has neither spaces nor a plus sign")


def parse_verifier_key(text: str) -> VerifierKey:
    """Raises ValueError, with a message that says what is wrong."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    check_name(name)
    key = strict_base64(encoded)
    if key is None or len(key) != 33 or key[:1] != ED25519:
        raise ValueError("a verifier key is name+keyid+base64 of an Ed25519 key")
    found = VerifierKey(name, key[1:])
    if key_id != found.key_id.hex():
        raise ValueError(f"the key id does not fit the key; it would be {found.key_id.hex()}")
    return found


def sign(text: str, signers: Sequence[Signer]) -> SignedNote:
    """The note that every signer has signed, in their order."""
    assert text.endswith("\n"), "a note's text ends with a newline"
    assert "\n\n" not in text, "a note's text has no empty line"
    message = text.encode()
    return SignedNote(text, [Signature(signer.key.name, signer.key.key_id, signer.sign(message)) for signer in signers])


def parse(note: str) -> SignedNote:
    """Raises MalformedNote for anything that is not exactly a signed note."""
    if len(note.encode(errors="surrogatepass")) > NOTE_BYTES_MAX:
        raise MalformedNote("a note is not that long")
    text, gap, lines = note.rpartition("\n\n")
    if not gap or not text or "\n\n" in text or _CONTROL.search(note) or not lines.endswith("\n"):
        raise MalformedNote("a note is a text, one empty line, and lines with signatures")
    signatures = [_parse_signature(line) for line in lines[:-1].split("\n")]
    if len(signatures) > SIGNATURES_MAX:
        raise MalformedNote(f"a note has at most {SIGNATURES_MAX} signatures")
    return SignedNote(f"{text}\n", signatures)


def verify(note: SignedNote, keys: Sequence[VerifierKey], verify_signature: VerifySignature) -> list[VerifierKey]:
    """The trusted keys that have signed the note; signatures of other keys are not looked at.

    Raises:
        SignatureInvalid: a trusted key's signature does not hold.
        NotSignedByKey: no trusted key has signed.
    """
    known = {(key.name, key.key_id): key for key in keys}
    message = note.text.encode()
    signed: list[VerifierKey] = []
    for name, key_id, signature in note.signatures:
        key = known.get((name, key_id))
        if key is None:
            continue
        if not verify_signature(key.public_key, signature, message):
            raise SignatureInvalid(f"the signature of {name} with key {key_id.hex()} does not hold")
        signed.append(key)
    if not signed:
        raise NotSignedByKey("no key that is trusted has signed this note")
    return signed


def _parse_signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_MARK).partition(" ")
    signed = strict_base64(encoded)
    if not line.startswith(_MARK) or not _NAME.fullmatch(name) or signed is None or len(signed) < 5:
        raise MalformedNote("a line with a signature is a dash, a name and base64")
    return Signature(name, signed[:4], signed[4:])


def strict_base64(text: str) -> bytes | None:
    """What a text encodes; None when it is not the one way to write that in standard base64."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if base64.b64encode(decoded).decode() == text else None
