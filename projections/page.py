"""A page: a stretch of the log, fetched once for all projections that stand before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar, cast

import psycopg
from psycopg.types.numeric import Int8BinaryLoader

from domain import events
from domain.eventsourced import DomainEvent

E = TypeVar("E", bound=DomainEvent)
Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Stored: TypeAlias = tuple[int, int, str, bytes]
"""Position, time of recording, topic and payload of an event, as the log has them. The time is PostgreSQL's own number,
microseconds since the beginning of the year 2000 in UTC: a datetime takes as long to make as all the rest of a row, and
tables get the number copied in as it is, under the type ``RECORDED_AT``."""

Recorded: TypeAlias = tuple[int, int, E]
"""Position, time of recording, and the event. A plain tuple, because millions of them are made."""

RECORDED_AT = "int8"
"""How the time of recording goes into a column of times in a binary COPY."""

READ = """
SELECT position, recorded_at, topic, state FROM events
WHERE position > %s AND position <= %s AND topic = ANY(%s) ORDER BY position
"""
"""The events of some topics in a stretch of the log."""


class EventNotReadable(Exception):
    """An event that this build cannot read stands in the way."""

    def __init__(self, position: int, topic: str, why: ValueError) -> None:
        super().__init__(f"the event at position {position} ({topic}) cannot be read: {type(why).__name__}")


class Page:
    """Events by their topic, each decoded once, when the first projection asks for its topic."""

    def __init__(self, stored: Iterable[Stored]) -> None:
        self._stored: defaultdict[str, list[Stored]] = defaultdict(list)
        for row in stored:
            self._stored[row[2]].append(row)
        self._decoded: dict[str, list[Recorded[Any]]] = {}

    def decode(self) -> None:
        """Decode all events now, for threads that share the page.

        Raises:
            EventNotReadable: a newer build wrote one of them, or it is damaged.
        """
        for topic in list(self._stored):
            self._decoded[topic] = self._decode(topic)

    def of(self, kind: type[E]) -> Sequence[Recorded[E]]:
        """The events of one class, in their order.

        Raises:
            EventNotReadable: a newer build wrote one of them, or it is damaged.
        """
        found = self._decoded.get(kind.TOPIC)
        if found is None:
            found = self._decoded[kind.TOPIC] = self._decode(kind.TOPIC)
        return found

    def of_any(self, *kinds: type[DomainEvent]) -> Sequence[Recorded[DomainEvent]]:
        """The events of several classes, in the order in which they were recorded."""
        merged = [recorded for kind in kinds for recorded in self.of(kind)]
        merged.sort(key=itemgetter(0))
        return merged

    def _decode(self, topic: str) -> list[Recorded[Any]]:
        decode = events.decode
        decoded: list[Recorded[Any]] = []
        for position, recorded_at, _, state in self._stored.get(topic, ()):
            try:
                decoded.append((position, recorded_at, decode(topic, state)))
            except (events.UnknownEvent, events.UnreadableEvent) as error:
                raise EventNotReadable(position, topic, error) from error
        self._stored.pop(topic, None)
        return decoded


def read_page(connection: Connection, after: int, upto: int, topics: Sequence[str]) -> Page:
    """The page of positions above ``after`` up to and including ``upto``."""
    cursor = connection.cursor(binary=True)
    cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
    cursor.execute(READ, (after, upto, list(topics)))
    return Page(cast("list[Stored]", cursor.fetchall()))
