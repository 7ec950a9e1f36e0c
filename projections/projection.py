"""What a read model is to those who run it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec

from domain.eventsourced import DomainEvent
from projections.page import Connection, Page


class Projection(Protocol):
    """One table that follows from the log.

    ``apply`` must not depend on where pages begin and end, nor on anything but the page and the table, so that a replay
    gives the same rows. It names its table without a schema: whoever runs it decides which table that is.
    """

    @property
    def name(self) -> str:
        """The table, and the row of tracking."""
        ...

    @property
    def events(self) -> Sequence[type[DomainEvent]]:
        """What it reads; it is shown nothing else."""
        ...

    @property
    def only_adds(self) -> bool:
        """Whether it adds rows and never looks for one, so that a rebuild may make the indexes afterwards."""
        ...

    def apply(self, connection: Connection, page: Page) -> None:
        """Change the table as the page says."""
        ...


def topics_of(projections: Iterable[Projection]) -> list[str]:
    return sorted({event.TOPIC for projection in projections for event in projection.events})


def uuids(texts: Sequence[str]) -> list[UUID]:
    """Ids from their text, all at once in a fifth of the time that one by one takes."""
    return msgspec.convert(texts, list[UUID])


def copy_rows(connection: Connection, statement: str, types: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Add rows with a binary COPY: one statement whatever their number, and the cheapest one.

    ``types`` are the names of the columns' types in the order of the statement.
    """
    if not rows:
        return
    with connection.cursor().copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
