"""Proofs as they travel in JSON, and how anyone checks them alone. Hashes are hex."""

from __future__ import annotations

import msgspec

from domain.transparency import checkpoint, export, merkle, note
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.export import EventLine, MalformedLine
from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import ProofRejected


class InclusionProof(msgspec.Struct, frozen=True, kw_only=True):
    """One event, and that it stands in the log. ``checkpoint`` is the signed note that the proof leads to."""

    event: EventLine
    size: int
    proof: tuple[str, ...]
    checkpoint: str


class ConsistencyProof(msgspec.Struct, frozen=True, kw_only=True):
    """That the log of ``to`` events begins with the log of ``from`` events."""

    old_size: int = msgspec.field(name="from")
    new_size: int = msgspec.field(name="to")
    old_root: str = msgspec.field(name="from_root")
    new_root: str = msgspec.field(name="to_root")
    proof: tuple[str, ...]


def prove_inclusion(event: LoggedEvent, hashed: bytes, proof: list[bytes], signed: str) -> InclusionProof:
    """The proof of an event against a signed checkpoint, checked before it is handed out.

    Raises:
        ProofRejected: the event is not the one that the tree holds; the stored log was changed.
    """
    size = checkpoint.read(note.parse(signed)).size
    made = InclusionProof(
        event=export.line_of(event, hashed),
        size=size,
        proof=tuple(step.hex() for step in proof),
        checkpoint=signed,
    )
    check_inclusion(made, checkpoint.read(note.parse(signed)))
    return made


def check_inclusion(made: InclusionProof, trusted: Checkpoint) -> LoggedEvent:
    """The event, when the proof leads from it to the root of a checkpoint that the caller trusts.

    Raises:
        ProofRejected: it does not.
    """
    try:
        event, claimed = export.event_of(made.event)
        steps = [bytes.fromhex(step) for step in made.proof]
    except (MalformedLine, ValueError) as error:
        raise ProofRejected(f"the proof cannot be read: {error}") from None
    hashed = export.hash_of(event)
    if hashed != claimed:
        raise ProofRejected("the event does not have the hash that is given for it")
    if made.size != trusted.size:
        raise ProofRejected(f"the proof is for a log of {made.size} events, the checkpoint for {trusted.size}")
    merkle.verify_inclusion(index=event.position - 1, size=trusted.size, hashed=hashed, proof=steps, root=trusted.root)
    return event


def check_consistency(made: ConsistencyProof, old: Checkpoint, new: Checkpoint) -> None:
    """Raises ProofRejected unless the newer checkpoint's log begins with the older one's."""
    try:
        steps = [bytes.fromhex(step) for step in made.proof]
    except ValueError as error:
        raise ProofRejected(f"the proof cannot be read: {error}") from None
    if (made.old_size, made.new_size) != (old.size, new.size):
        raise ProofRejected("the proof is for other sizes than the checkpoints")
    merkle.verify_consistency(old_size=old.size, new_size=new.size, old_root=old.root, new_root=new.root, proof=steps)
