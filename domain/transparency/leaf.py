"""The leaf of an event: the exact bytes that the tree covers.

Six fields in a fixed order, each preceded by its length in bytes as a big-endian 32-bit number: position (8 bytes),
aggregate id (16), version (4), topic (UTF-8), recorded time (8: microseconds since the beginning of the year 2000 in
UTC, as PostgreSQL stores it) and payload (the stored bytes). Numbers are big-endian two's complement.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_HEAD = struct.Struct(">IqI16sIiI")
_TAIL = struct.Struct(">IqI")


class MalformedLeaf(ValueError):
    """These bytes are not the leaf of an event."""


class LoggedEvent(NamedTuple):
    """One row of the log. ``recorded_us`` counts microseconds from ``EPOCH``; ``payload`` is exactly what is stored."""

    position: int
    originator_id: UUID
    originator_version: int
    topic: str
    recorded_us: int
    payload: bytes

    @property
    def recorded_at(self) -> datetime:
        """Raises OverflowError for a time that no calendar of Python's has."""
        return EPOCH + timedelta(microseconds=self.recorded_us)


def microseconds_of(moment: datetime) -> int:
    return (moment - EPOCH) // _MICROSECOND


def encode(event: LoggedEvent) -> bytes:
    topic = event.topic.encode()
    head = _HEAD.pack(8, event.position, 16, event.originator_id.bytes, 4, event.originator_version, len(topic))
    return b"".join((head, topic, _TAIL.pack(8, event.recorded_us, len(event.payload)), event.payload))


def decode(leaf: bytes) -> LoggedEvent:
    """Raises MalformedLeaf."""
    try:
        eight, position, sixteen, originator, four, version, topic_bytes = _HEAD.unpack_from(leaf)
        tail = _HEAD.size + topic_bytes
        eight_too, recorded_us, payload_bytes = _TAIL.unpack_from(leaf, tail)
        topic = leaf[_HEAD.size : tail].decode()
    except (struct.error, UnicodeDecodeError):
        raise MalformedLeaf("a leaf is six fields, each with its length before it") from None
    payload = leaf[tail + _TAIL.size :]
    if (eight, sixteen, four, eight_too, payload_bytes) != (8, 16, 4, 8, len(payload)):
        raise MalformedLeaf("a field of this leaf does not have the length that it must have")
    return LoggedEvent(position, UUID(bytes=originator), version, topic, recorded_us, payload)
