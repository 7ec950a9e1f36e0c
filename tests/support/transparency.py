"""What the tests of the transparency log share: logs of events, signed checkpoints, and exports as lists of lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid5

from adapters.crypto.notary import Ed25519Signer
from domain.transparency import checkpoint, export
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import CompactRange

ORIGIN = "example.org/log"
SIGNER = Ed25519Signer(ORIGIN, bytes(range(32)))
OTHER_SIGNER = Ed25519Signer(ORIGIN, bytes(range(1, 33)))
SIGNED_AT = datetime(2026, 11, 24, 8, 0, 0, 123456, tzinfo=UTC)
NAMESPACE = UUID("0f3f2f0e-5f0c-5b1a-9d3a-0a54d7a7f2b4")


def event(position: int, *, aggregate: int = 0, version: int | None = None, text: str = "") -> LoggedEvent:
    """An event of a made-up log. Without a version, it is the next one of an aggregate that has every third event."""
    aggregate = aggregate or position % 3
    version = version or (position + 2) // 3
    originator_id = uuid5(NAMESPACE, str(aggregate))
    payload = f'{{"originator_id":"{originator_id}","originator_version":{version},"text":"ä{text or position}"}}'
    return LoggedEvent(
        position, originator_id, version, "Test.Happened", 817_113_600_000_000 + position, payload.encode()
    )


def log_of(size: int) -> list[LoggedEvent]:
    return [event(position) for position in range(1, size + 1)]


def root_of(events: Sequence[LoggedEvent]) -> bytes:
    tree = CompactRange()
    for each in events:
        tree.append(export.hash_of(each))
    return tree.root()


def checkpoint_of(events: Sequence[LoggedEvent]) -> Checkpoint:
    return Checkpoint(ORIGIN, len(events), root_of(events), SIGNED_AT)


def signed(events: Sequence[LoggedEvent], *signers: Ed25519Signer) -> str:
    return str(checkpoint.sign(checkpoint_of(events), signers or [SIGNER]))


def exported(events: Sequence[LoggedEvent]) -> list[bytes]:
    """The lines of an export whose hashes are those of its events."""
    return list(export.lines((each, export.hash_of(each)) for each in events))
