"""An export of the log: one line of JSON for each event in the order of the log, and a last line that sums up.

The file is read and written line by line. Every line has exactly one way to be written, so a changed byte is a changed
line. The payload stands as text, because it is JSON itself; bytes that are no UTF-8 would stand as ``payload_base64``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from domain.transparency import leaf
from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import leaf_hash
from domain.transparency.note import strict_base64

LINE_BYTES_MAX = 64 * 1024 * 1024

_RECORDED_AT = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d\.\d{6}Z", re.ASCII)
_LEAF_HASH = re.compile(r"[0-9a-f]{64}")


class MalformedLine(ValueError):
    """This line is not the line of an event, or not written in the one way."""


class NotExportable(ValueError):
    """An event of the log cannot be written as a line; its row was changed by hand."""


class EventLine(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An event as exports and inclusion proofs carry it. ``leaf_hash`` is what the tree holds for it, in hex."""

    position: int
    originator_id: UUID
    originator_version: int
    topic: str
    recorded_at: str
    leaf_hash: str
    payload: str | None = None
    payload_base64: str | None = None


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line. ``sha256`` is over all bytes before it; positions are null without an event."""

    count: int
    first_position: int | None
    last_position: int | None
    sha256: str


class Hashed(NamedTuple):
    """An event with the hash that its line claims for it."""

    event: LoggedEvent
    leaf_hash: bytes


_encoder = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(EventLine)
_summary_decoder = msgspec.json.Decoder(Summary)


def line_of(event: LoggedEvent, hashed: bytes) -> EventLine:
    """Raises NotExportable."""
    try:
        recorded_at = event.recorded_at.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    except OverflowError:
        raise NotExportable(f"the recorded time of position {event.position} is outside of the calendar") from None
    is_text = _is_text(event.payload)
    return EventLine(
        position=event.position,
        originator_id=event.originator_id,
        originator_version=event.originator_version,
        topic=event.topic,
        recorded_at=recorded_at,
        leaf_hash=hashed.hex(),
        payload=event.payload.decode() if is_text else None,
        payload_base64=None if is_text else base64.b64encode(event.payload).decode(),
    )


def encode_line(line: EventLine) -> bytes:
    return _encoder.encode(line) + b"\n"


def parse_line(line: bytes) -> Hashed:
    """Raises MalformedLine."""
    try:
        parsed = _line_decoder.decode(line)
        written = encode_line(parsed)
    except (msgspec.DecodeError, UnicodeError):
        raise MalformedLine("it is not the line of an event") from None
    if written != line:
        raise MalformedLine("it is not written in the one way that an event's line has")
    return event_of(parsed)


def event_of(line: EventLine) -> Hashed:
    """The event that a line describes.

    Raises:
        MalformedLine: a member does not have its form.
    """
    if not (
        -(2**63) <= line.position < 2**63
        and -(2**31) <= line.originator_version < 2**31
        and _LEAF_HASH.fullmatch(line.leaf_hash)
        and _RECORDED_AT.fullmatch(line.recorded_at)
    ):
        raise MalformedLine("a member of the event does not have its form")
    try:
        recorded_us = leaf.microseconds_of(datetime.fromisoformat(line.recorded_at))
    except ValueError:
        raise MalformedLine("the recorded time of the event does not exist") from None
    event = LoggedEvent(
        line.position, line.originator_id, line.originator_version, line.topic, recorded_us, _payload_of(line)
    )
    return Hashed(event, bytes.fromhex(line.leaf_hash))


def _payload_of(line: EventLine) -> bytes:
    if line.payload is not None and line.payload_base64 is None:
        return line.payload.encode()
    payload = strict_base64(line.payload_base64 or "")
    if payload is None or line.payload is not None or _is_text(payload):
        raise MalformedLine("the payload of the event does not have its form")
    return payload


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def hash_of(event: LoggedEvent) -> bytes:
    """The hash that the tree must hold for an event."""
    return leaf_hash(leaf.encode(event))


def parse_summary(line: bytes) -> Summary | None:
    """The last line, or None when this is not one."""
    try:
        summary = _summary_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return summary if _encoder.encode(summary) + b"\n" == line else None


def lines(events: Iterable[tuple[LoggedEvent, bytes]]) -> Iterator[bytes]:
    """The whole file, line by line, for events in the order of the log with the hashes that the tree holds for them.

    Raises:
        NotExportable: when it comes to an event that has no line.
    """
    digest = hashlib.sha256()
    count = 0
    first = last = None
    for event, hashed in events:
        line = encode_line(line_of(event, hashed))
        digest.update(line)
        count += 1
        first = event.position if first is None else first
        last = event.position
        yield line
    yield _encoder.encode(Summary(count, first, last, digest.hexdigest())) + b"\n"
