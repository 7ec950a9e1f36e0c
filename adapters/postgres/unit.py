"""The unit of work: commands decide on cached aggregates, and a failed one leaves no trace."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from domain.eventsourced import Aggregate, DomainEvent, Ref
from domain.ledger import Command

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")


class NotLoaded(Exception):
    """A command touched an aggregate that it did not declare; load it and run the command again."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(str(ref.id))
        self.ref = ref


class AggregateCache:
    """The current state of the aggregates used last, bounded in number."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._aggregates: OrderedDict[UUID, Aggregate] = OrderedDict()

    def get(self, aggregate_id: UUID) -> Aggregate | None:
        found = self._aggregates.get(aggregate_id)
        if found is not None:
            self._aggregates.move_to_end(aggregate_id)
        return found

    def put(self, aggregate: Aggregate) -> None:
        self._aggregates[aggregate.id] = aggregate

    def evict(self, ids: Iterable[UUID]) -> None:
        for aggregate_id in ids:
            self._aggregates.pop(aggregate_id, None)

    def clear(self) -> None:
        self._aggregates.clear()

    def shrink(self) -> None:
        while len(self._aggregates) > self._size_max:
            self._aggregates.popitem(last=False)

    def apply(self, event: DomainEvent) -> None:
        """Follow an event that another writer recorded, if its aggregate is here and does not know it yet."""
        aggregate = self._aggregates.get(event.originator_id)
        if aggregate is not None and event.originator_version > aggregate.version:
            event.evolve(aggregate)


class BatchUnit:
    """Runs the commands of one batch in order, each seeing what those before it recorded."""

    def __init__(self, cache: AggregateCache, now: datetime) -> None:
        self.now = now
        self.events: list[DomainEvent] = []
        self.touched: dict[UUID, Aggregate] = {}
        self._cache = cache
        self._command: Command[Any] | None = None
        self._undo: dict[UUID, Aggregate] = {}

    def run(self, command: Command[R]) -> R:
        """Run one command; when it raises, everything it recorded is undone and its neighbours do not notice."""
        mark = len(self.events)
        self._command, self._undo = command, {}
        try:
            result = command.decide(self)
            for aggregate_id in self._undo:
                self.touched[aggregate_id].check()
        except BaseException:
            self._roll_back(mark)
            raise
        return result

    def get(self, kind: type[A], key: str) -> A:
        found = self._cache.get(kind.id_of(key))
        if found is None:
            raise NotLoaded(Ref(kind, kind.id_of(key)))
        assert isinstance(found, kind)
        return found

    def fresh(self, kind: type[A], key: str) -> A:
        found = self._cache.get(kind.id_of(key))
        if found is None:
            found = kind(kind.id_of(key))
            self._cache.put(found)
        assert isinstance(found, kind)
        return found

    def record(self, aggregate: Aggregate, event: type[DomainEvent], **payload: Any) -> None:
        assert self._command is not None
        if aggregate.id not in self._undo:
            self._undo[aggregate.id] = aggregate.copy()
            self.touched[aggregate.id] = aggregate
        recorded = event(
            originator_id=aggregate.id,
            originator_version=aggregate.version + 1,
            schema_version=event.SCHEMA_VERSION,
            timestamp=self.now,
            actor=self._command.actor,
            correlation_id=self._command.correlation_id,
            **payload,
        )
        recorded.evolve(aggregate)
        self.events.append(recorded)

    def _roll_back(self, mark: int) -> None:
        del self.events[mark:]
        for aggregate_id, before in self._undo.items():
            self._cache.put(before)
            self.touched[aggregate_id] = before
