"""How trust goes from one key of a log to the next: a note that the present keys and the successor have signed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from domain.transparency import note
from domain.transparency.note import (
    MalformedNote,
    NotSignedByKey,
    SignatureInvalid,
    SignedNote,
    Signer,
    VerifierKey,
    VerifySignature,
)

_WORD = "successor "


def announce(signers: Sequence[Signer], successor: Signer) -> SignedNote:
    """The announcement of a successor. No checkpoint can look like it."""
    return note.sign(f"{signers[0].key.name}\n{_WORD}{successor.key}\n", [*signers, successor])


def follow(
    trusted: Sequence[VerifierKey], announcements: Iterable[str], verify_signature: VerifySignature
) -> list[VerifierKey]:
    """The keys that follow from trusted ones, these first. Announcements by keys that are not trusted are passed over.

    Raises:
        MalformedNote: something is no announcement.
        SignatureInvalid: a trusted key's signature does not hold, or the successor has not signed for itself.
    """
    found = list(trusted)
    for announcement in announcements:
        signed = note.parse(announcement)
        successor = _read(signed)
        try:
            signers = note.verify(signed, found, verify_signature)
        except NotSignedByKey:
            continue
        try:
            note.verify(signed, [successor], verify_signature)
        except NotSignedByKey:
            raise SignatureInvalid(f"key {successor.key_id.hex()} has not signed its own announcement") from None
        if successor not in found and successor.name in {key.name for key in signers}:
            found.append(successor)
    return found


def _read(signed: SignedNote) -> VerifierKey:
    lines = signed.text[:-1].split("\n")
    try:
        origin, line = lines
        successor = note.parse_verifier_key(line.removeprefix(_WORD))
    except ValueError:
        raise MalformedNote("an announcement is an origin and a successor") from None
    if not line.startswith(_WORD) or origin != successor.name:
        raise MalformedNote("an announcement is an origin and a successor of that name")
    return successor
