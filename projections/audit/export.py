"""Exports: the log's entries, events, usage or earnings as CSV or JSON lines, with totals and a hash at the end.

They are read from the events alone, page by page, so they need no read model and little memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from domain import events
from domain.errors import InvalidRequest
from domain.journal import JournalEntryPosted
from domain.requests import RequestSettled
from projections.audit.instants import Connection, Stretch

FORMATS = ("jsonl", "csv")
PAGE_EVENTS = 2_000

PAGE = """
SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events
WHERE position > %s AND position <= %s AND (%s::text[] IS NULL OR topic = ANY(%s)) ORDER BY position
"""

Row = dict[str, Any]


class Exported(NamedTuple):
    """An event as it is exported."""

    position: int
    originator_id: UUID
    originator_version: int
    topic: str
    recorded_at: datetime
    state: bytes


class Kind(NamedTuple):
    """One kind of export: the topics that it reads (None for all), its columns, an event's rows and its debits."""

    topics: list[str] | None
    columns: tuple[str, ...]
    rows: Callable[[Exported], Iterable[tuple[Row, int]]]


class Trailer(msgspec.Struct, frozen=True, kw_only=True):
    """The last line. ``sha256`` covers every byte before it; without this line an export is not complete.

    ``sum_of_debits_micro_usd`` adds up debits for entries and events, costs for usage, and what was paid to machines
    for earnings.
    """

    what: str
    rows: int
    sum_of_debits_micro_usd: int
    first_position: int | None
    last_position: int | None
    after_position: int
    upto_position: int
    sha256: str


def export(connection: Connection, stretch: Stretch, *, what: str, format_: str) -> Iterator[bytes]:
    """The export of a stretch of the log, in pieces. Run it inside of a snapshot.

    Raises:
        InvalidRequest: there is no such kind or format.
    """
    kind = KINDS.get(what)
    if kind is None:
        raise InvalidRequest(f"'what' is one of {', '.join(KINDS)}.", param="what")
    if format_ not in FORMATS:
        raise InvalidRequest(f"'format' is one of {', '.join(FORMATS)}.", param="format")
    return _export(connection, stretch, what, kind, _csv if format_ == "csv" else _jsonl)


def _export(
    connection: Connection,
    stretch: Stretch,
    what: str,
    kind: Kind,
    write: Callable[[tuple[str, ...], Sequence[Row]], bytes],
) -> Iterator[bytes]:
    after, upto = stretch.after.position, stretch.upto.position
    digest = hashlib.sha256()
    count = debits = 0
    first: int | None = None
    last: int | None = None
    if write is _csv:
        head = ",".join(kind.columns).encode() + b"\n"
        digest.update(head)
        yield head
    for page in _pages(connection, after, upto, kind.topics):
        rows = [row for event in page for row in kind.rows(event)]
        if not rows:
            continue
        piece = write(kind.columns, [row for row, _ in rows])
        digest.update(piece)
        count += len(rows)
        debits += sum(debit for _, debit in rows)
        first = rows[0][0]["position"] if first is None else first
        last = rows[-1][0]["position"]
        yield piece
    trailer = Trailer(
        what=what,
        rows=count,
        sum_of_debits_micro_usd=debits,
        first_position=first,
        last_position=last,
        after_position=after,
        upto_position=upto,
        sha256=digest.hexdigest(),
    )
    yield (b"# " if write is _csv else b"") + msgspec.json.encode({"trailer": trailer}) + b"\n"


def _pages(connection: Connection, after: int, upto: int, topics: list[str] | None) -> Iterator[list[Exported]]:
    if topics == []:
        return
    with connection.cursor(name="export") as cursor:
        cursor.execute(PAGE, (after, upto, topics, topics), binary=True)
        while page := cursor.fetchmany(PAGE_EVENTS):
            yield [Exported(*row) for row in page]


def _jsonl(_: tuple[str, ...], rows: Sequence[Row]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _csv(columns: tuple[str, ...], rows: Sequence[Row]) -> bytes:
    """One line a row; an entry has one a posting, so that a spreadsheet can add them up."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        for flat in _flat(row):
            writer.writerow([_cell(flat[column]) for column in columns])
    return text.getvalue().encode()


def _flat(row: Row) -> Iterator[Row]:
    if "postings" not in row:
        yield row
        return
    for line, posting in enumerate(row["postings"]):
        yield {**row, "line": line, **posting}


def _cell(value: object) -> str:
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    text = str(value)
    # A spreadsheet would run a text that begins like a formula; only references and ids can.
    runs = text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and not text[1:].isdigit())
    return f"'{text}" if runs else text


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _entry_rows(event: Exported) -> Iterator[tuple[Row, int]]:
    posted = events.decode(event.topic, event.state)
    assert isinstance(posted, JournalEntryPosted)
    postings = [
        {
            "code": line.account_code,
            "sub_account": line.sub_account,
            "debit_micro_usd": line.amount if line.direction == "debit" else 0,
            "credit_micro_usd": line.amount if line.direction == "credit" else 0,
        }
        for line in posted.postings
    ]
    row = {
        "position": event.position,
        "entry_id": str(posted.originator_id),
        "entry_key": posted.entry_key,
        "kind": posted.kind,
        "reference": posted.reference,
        "effective_at": _time(posted.effective_at),
        "recorded_at": _time(event.recorded_at),
        "postings": postings,
    }
    yield row, sum(posting["debit_micro_usd"] for posting in postings if isinstance(posting["debit_micro_usd"], int))


def _event_rows(event: Exported) -> Iterator[tuple[Row, int]]:
    row = {
        "position": event.position,
        "originator_id": str(event.originator_id),
        "originator_version": event.originator_version,
        "topic": event.topic,
        "recorded_at": _time(event.recorded_at),
        "state": msgspec.Raw(event.state),
    }
    debits = 0
    if event.topic == JournalEntryPosted.TOPIC:
        posted = events.decode(event.topic, event.state)
        assert isinstance(posted, JournalEntryPosted)
        debits = sum(line.amount for line in posted.postings if line.direction == "debit")
    yield row, debits


def _settled(event: Exported) -> RequestSettled:
    settled = events.decode(event.topic, event.state)
    assert isinstance(settled, RequestSettled)
    return settled


def _usage_rows(event: Exported) -> Iterator[tuple[Row, int]]:
    settled = _settled(event)
    if settled.free:
        return
    row = {
        "position": event.position,
        "recorded_at": _time(event.recorded_at),
        "job_id": settled.job_id,
        "account_id": settled.account_id,
        "model": settled.model,
        "prompt_tokens": settled.prompt_tokens,
        "completion_tokens": settled.completion_tokens,
        "cached_tokens": settled.cached_tokens,
        "unit": settled.unit,
        "units": settled.units,
        "cost_micro_usd": settled.cost,
    }
    yield row, settled.cost


def _earning_rows(event: Exported) -> Iterator[tuple[Row, int]]:
    settled = _settled(event)
    if not settled.provider_amount:
        return
    row = {
        "position": event.position,
        "recorded_at": _time(event.recorded_at),
        "job_id": settled.job_id,
        "account_id": settled.provider_account_id,
        "machine_id": settled.machine_id,
        "model": settled.model,
        "amount_micro_usd": settled.provider_amount,
    }
    yield row, settled.provider_amount


def _no_rows(_: Exported) -> Iterator[tuple[Row, int]]:
    return iter(())


KINDS: dict[str, Kind] = {
    "entries": Kind(
        [JournalEntryPosted.TOPIC],
        (
            "position",
            "entry_id",
            "entry_key",
            "kind",
            "reference",
            "effective_at",
            "recorded_at",
            "line",
            "code",
            "sub_account",
            "debit_micro_usd",
            "credit_micro_usd",
        ),
        _entry_rows,
    ),
    "events": Kind(
        None,
        ("position", "originator_id", "originator_version", "topic", "recorded_at", "state"),
        _event_rows,
    ),
    "usage": Kind(
        [RequestSettled.TOPIC],
        (
            "position",
            "recorded_at",
            "job_id",
            "account_id",
            "model",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
            "unit",
            "units",
            "cost_micro_usd",
        ),
        _usage_rows,
    ),
    "earnings": Kind(
        [RequestSettled.TOPIC],
        ("position", "recorded_at", "job_id", "account_id", "machine_id", "model", "amount_micro_usd"),
        _earning_rows,
    ),
    "withdrawals": Kind(
        [], ("position", "recorded_at", "withdrawal_id", "account_id", "amount_micro_usd", "status"), _no_rows
    ),
}
"""Withdrawals have no events yet: their export is empty and complete."""
