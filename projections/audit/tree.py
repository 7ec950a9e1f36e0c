"""The Merkle tree as an auditor asks for it: the root at a position, the newest signed head, a range checked again."""

from __future__ import annotations

import hashlib
from datetime import datetime

import msgspec

from domain.transparency import checkpoint, leaf, merkle, note
from domain.transparency.tiles import TreeDamaged
from projections import checkpoints, transparency
from projections.audit.instants import Connection


class SignedHead(msgspec.Struct, frozen=True, kw_only=True):
    """The newest checkpoint: size, root and time that it signs, with the signature and key of its first signer."""

    position: int
    chain_hash: str
    signed_at: datetime
    signature: str
    key_id: str
    public_key: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the stored events of a range still are the leaves that the tree was built from, and whether the tree
    still has the root that the newest checkpoint signs. ``head`` is that root."""

    ok: bool
    from_position: int = msgspec.field(name="from")
    to_position: int = msgspec.field(name="to")
    events: int
    head: str | None
    first_bad_position: int | None


def root_at(connection: Connection, position: int) -> str | None:
    """The root over the first events up to a position in hex, or None when the tree has not got that far."""
    if position == 0:
        return hashlib.sha256().hexdigest()
    if position > transparency.tree_size(connection):
        return None
    [root] = transparency.roots(connection, [(0, position)])
    return root.hex()


def signed_head(connection: Connection) -> SignedHead | None:
    """None before the first checkpoint."""
    newest = checkpoints.newest_note(connection)
    if newest is None:
        return None
    signed = note.parse(newest)
    made, first = checkpoint.read(signed), signed.signatures[0]
    keys = {entry.key.key_id: entry.key for entry in checkpoints.keys(connection)}
    return SignedHead(
        position=made.size,
        chain_hash=made.root.hex(),
        signed_at=made.signed_at,
        signature=first.signature.hex(),
        key_id=first.key_id.hex(),
        public_key=keys[first.key_id].public_key.hex(),
    )


def verify(connection: Connection, first: int, last: int) -> Verification:
    """Hash the events of a range, both ends included, and compare each with its leaf. What the tree does not cover yet
    is not looked at."""
    end = min(last, transparency.tree_size(connection))
    head = signed_head(connection)
    seen, bad = 0, None
    try:
        for event, hashed in transparency.hashed_events(connection, first, end):
            if event.position != first + seen or merkle.leaf_hash(leaf.encode(event)) != hashed:
                bad = first + seen
                break
            seen += 1
        complete = bad is None and seen == max(0, end - first + 1)
        intact = head is None or root_at(connection, head.position) == head.chain_hash
    except TreeDamaged:
        complete, intact = False, False
    return Verification(
        ok=complete and intact,
        from_position=first,
        to_position=end,
        events=seen,
        head=head.chain_hash if head else None,
        first_bad_position=bad if complete or bad is not None else first + seen,
    )
