"""One journal entry with everything around it, and the search for entries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from domain import events
from domain.errors import NotFound
from domain.eventsourced import Actor
from domain.journal import CHART, JournalEntry, JournalEntryPosted
from projections.audit.adjustments import adjustments
from projections.audit.cursors import read_cursor, write_cursor
from projections.audit.instants import Connection, Stretch, at_position
from projections.audit.sources import LINES, Sources

ENTRY = """
SELECT position, recorded_at, state FROM events WHERE originator_id = %s AND topic = 'JournalEntry.JournalEntryPosted'
"""

ENTRIES = "SELECT position, recorded_at, state FROM events WHERE position = ANY(%s) ORDER BY position"

AROUND = """
SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events
WHERE position BETWEEN %(position)s - %(reach)s AND %(position)s + %(reach)s ORDER BY position
"""

MATCHING = (
    LINES
    + """
SELECT DISTINCT position FROM lines
WHERE position > %(after)s AND position <= %(upto)s
    AND (%(kind)s::text IS NULL OR kind = %(kind)s)
    AND (%(account)s::text IS NULL OR sub_account = %(account)s)
    AND (%(code)s::text IS NULL OR account_code = %(code)s)
    AND (%(reference)s::text IS NULL OR reference = %(reference)s)
    AND debit_micro_usd + credit_micro_usd BETWEEN %(least)s AND %(most)s
ORDER BY position LIMIT %(limit)s
"""
)
"""Entries with at least one posting that is all that is asked for."""

NEIGHBOURHOOD_POSITIONS = 64
"""Further away than this stands nothing that one transaction wrote for one operation."""

AMOUNT_MAX = 2**62


class EntryPosting(msgspec.Struct, frozen=True):
    code: str
    name: str
    sub_account: str
    debit_micro_usd: int
    credit_micro_usd: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    entry_id: UUID
    position: int
    entry_key: str
    kind: str
    reference: str
    effective_at: datetime
    recorded_at: datetime
    metadata: dict[str, str]
    reverses_entry_id: UUID | None
    postings: list[EntryPosting]


class EventInLog(msgspec.Struct, frozen=True):
    """An event where it stands; ``state`` is its stored JSON, byte for byte."""

    position: int
    originator_id: UUID
    originator_version: int
    topic: str
    recorded_at: datetime
    state: msgspec.Raw


class Correction(msgspec.Struct, frozen=True):
    """An adjustment that names this entry, or an event that led to it, as wrong."""

    adjustment_id: str
    status: str
    entry_id: UUID | None


class Envelope(msgspec.Struct, frozen=True):
    originator_id: UUID
    originator_version: int
    schema_version: int
    occurred_at: datetime
    recorded_at: datetime
    actor: Actor
    correlation_id: str


class EntryInContext(msgspec.Struct, frozen=True, kw_only=True):
    """``causing_events`` share the correlation id and the neighbourhood; ``previous`` and ``next`` stand beside the
    entry in the log, whatever they are."""

    entry: Entry
    envelope: Envelope
    causing_events: list[EventInLog]
    corrections: list[Correction]
    previous: EventInLog | None
    next: EventInLog | None


class EntryPage(msgspec.Struct, frozen=True):
    entries: list[Entry]
    next_cursor: str | None


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """None asks for nothing; the amounts are micro-USD of one posting."""

    kind: str | None = None
    account: str | None = None
    code: str | None = None
    reference: str | None = None
    least_micro_usd: int = 0
    most_micro_usd: int = AMOUNT_MAX


def entry(connection: Connection, id_or_key: str) -> EntryInContext:
    """An entry by its id or by its key, such as ``settle:<job id>``.

    Raises:
        NotFound: there is none.
    """
    try:
        entry_id = UUID(id_or_key)
    except ValueError:
        entry_id = JournalEntry.id_of(id_or_key)
    row = connection.execute(ENTRY, (entry_id,)).fetchone()
    if row is None:
        raise NotFound("There is no journal entry of that id or key.")
    position, recorded_at, state = row
    posted = _decode(state)
    around = [
        EventInLog(*(*row[:5], msgspec.Raw(bytes(row[5]))))
        for row in connection.execute(AROUND, {"position": position, "reach": NEIGHBOURHOOD_POSITIONS}).fetchall()
    ]
    causes = [other for other in around if other.position != position and _belongs(other, posted.correlation_id)]
    wrong = {f"{other.originator_id}/{other.originator_version}" for other in causes} | {f"{entry_id}/1"}
    beside = {other.position: other for other in around}
    return EntryInContext(
        entry=_entry(position, recorded_at, posted),
        envelope=Envelope(
            posted.originator_id,
            posted.originator_version,
            posted.schema_version,
            posted.timestamp,
            recorded_at,
            posted.actor,
            posted.correlation_id,
        ),
        causing_events=causes,
        corrections=[
            Correction(state.proposal.adjustment_id, state.status, state.entry_id)
            for state in adjustments(connection)
            if state.proposal.corrects_event_id in wrong
        ],
        previous=beside.get(position - 1),
        next=beside.get(position + 1),
    )


def search(
    connection: Connection, stretch: Stretch, filters: Filters, sources: Sources, *, cursor: str, limit: int
) -> EntryPage:
    """A page of entries in the order of the log.

    Raises:
        InvalidRequest: the cursor is not from here.
    """
    after, upto = stretch.after.position, stretch.upto.position
    if cursor:
        after, upto = read_cursor(cursor, 2)
        at_position(connection, upto)
    parameters: dict[str, Any] = {
        "lines_read": sources.lines_read,
        "after": after,
        "upto": upto,
        "kind": filters.kind,
        "account": filters.account,
        "code": filters.code,
        "reference": filters.reference,
        "least": filters.least_micro_usd,
        "most": filters.most_micro_usd,
        "limit": limit + 1,
    }
    positions = [row[0] for row in connection.execute(MATCHING, parameters, prepare=False)]
    page, more = positions[:limit], len(positions) > limit
    return EntryPage(
        entries=entries_at(connection, page),
        next_cursor=write_cursor(page[-1], upto) if more else None,
    )


def entries_at(connection: Connection, positions: Sequence[int]) -> list[Entry]:
    rows = connection.execute(ENTRIES, (list(positions),)).fetchall()
    return [_entry(position, recorded_at, _decode(state)) for position, recorded_at, state in rows]


def _decode(state: bytes) -> JournalEntryPosted:
    event = events.decode(JournalEntryPosted.TOPIC, bytes(state))
    assert isinstance(event, JournalEntryPosted)
    return event


def _belongs(event: EventInLog, correlation_id: str) -> bool:
    said = events.decode(event.topic, bytes(event.state))
    return bool(correlation_id) and said.correlation_id == correlation_id


def _entry(position: int, recorded_at: datetime, posted: JournalEntryPosted) -> Entry:
    return Entry(
        entry_id=posted.originator_id,
        position=position,
        entry_key=posted.entry_key,
        kind=posted.kind,
        reference=posted.reference,
        effective_at=posted.effective_at,
        recorded_at=recorded_at,
        metadata=posted.metadata,
        reverses_entry_id=posted.reverses_entry_id,
        postings=[
            EntryPosting(
                line.account_code,
                CHART[line.account_code].name,
                line.sub_account,
                line.amount if line.direction == "debit" else 0,
                line.amount if line.direction == "credit" else 0,
            )
            for line in posted.postings
        ],
    )
