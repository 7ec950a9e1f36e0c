"""The read models in dicts: the real projections' rows, put where their SQL would put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self
from uuid import UUID

from domain import events
from domain.eventsourced import Aggregate, Written
from projections import balances, earnings, journal, open_requests, usage
from projections.page import Page

Row = tuple[Any, ...]


class _Copied:
    """Stands where a projection expects its connection, and keeps what it would copy into its table."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def cursor(self) -> Self:
        return self

    def copy(self, _statement: str) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set_types(self, types: Sequence[str]) -> None:
        self._columns = len(types)

    def write_row(self, row: Row) -> None:
        assert len(row) == self._columns
        self.rows.append(row)


class ReadModels:
    """Every table by its key. A conflict ends as the statement says: the first row stays, or the newest wallet."""

    def __init__(self) -> None:
        self.balances: dict[str, Row] = {}
        self.usage: dict[str, Row] = {}
        self.open_requests: dict[str, Row] = {}
        self.earnings: dict[str, Row] = {}
        self.journal_lines: dict[tuple[int, int], Row] = {}

    def follow(self, written: Written) -> None:
        """Read what one transaction appended: the inline projections as the writer runs them, then the lagging ones."""
        for statement, columns in balances.Balances().statements(written):
            assert statement == balances.UPSERT
            for row in zip(*columns, strict=True):
                if row[0] not in self.balances or self.balances[row[0]][1] < row[1]:
                    self.balances[row[0]] = row
        for statement, columns in usage.UsageEntries().statements(written):
            assert statement == usage.INSERT
            for row in zip(*columns, strict=True):
                self.usage.setdefault(row[0], row)
        for statement, columns in open_requests.OpenRequests().statements(written):
            if statement == open_requests.INSERT:
                for row in zip(*columns, strict=True):
                    self.open_requests.setdefault(row[0], row)
            else:
                assert statement == open_requests.DELETE
                for request_id in columns[0]:
                    self.open_requests.pop(request_id, None)
        for row in _rows(earnings.Earnings(), written):
            self.earnings.setdefault(row[0], row)
        for row in _rows(journal.JournalLines(), written):
            self.journal_lines.setdefault((row[0], row[1]), row)


def _rows(projection: earnings.Earnings | journal.JournalLines, written: Written) -> list[Row]:
    page = Page(
        (position, written.recorded_at, event.TOPIC, events.encode(event))
        for position, event in enumerate(written.events, written.first_position)
        if type(event) in projection.events
    )
    connection = _Copied()
    projection.apply(connection, page)  # type: ignore[arg-type]
    return connection.rows


def rebuilt(log: Sequence[tuple[int, Any]], aggregates: Mapping[UUID, Aggregate], recorded_at: Any) -> ReadModels:
    """The tables as one pass over the whole log makes them. ``log`` is positions with their events."""
    models = ReadModels()
    models.follow(Written(1, recorded_at, [event for _, event in log], aggregates))
    return models
