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
        # By the number inside of the id, whose hash costs a third of the id's own.
        self._aggregates: OrderedDict[int, Aggregate] = OrderedDict()

    def __contains__(self, aggregate_id: UUID) -> bool:
        return aggregate_id.int in self._aggregates

    def get(self, aggregate_id: UUID) -> Aggregate | None:
        number = aggregate_id.int
        found = self._aggregates.get(number)
        if found is not None:
            self._aggregates.move_to_end(number)
        return found

    def put(self, aggregate: Aggregate) -> None:
        self._aggregates[aggregate.id.int] = aggregate

    def evict(self, aggregates: Iterable[Aggregate]) -> None:
        for aggregate in aggregates:
            self._aggregates.pop(aggregate.id.int, None)

    def clear(self) -> None:
        self._aggregates.clear()

    def shrink(self) -> None:
        while len(self._aggregates) > self._size_max:
            self._aggregates.popitem(last=False)


class BatchUnit:
    """Runs the commands of one batch in order, each seeing what those before it recorded.

    ``touched`` are the aggregates that the batch changes so far, by the number inside of their id.
    """

    def __init__(self, cache: AggregateCache, now: datetime) -> None:
        self.now = now
        self.events: list[DomainEvent] = []
        self.touched: dict[int, Aggregate] = {}
        self._cache = cache
        self._command: Command[Any] | None = None
        self._changing: dict[int, Aggregate] = {}
        self._before: dict[int, Aggregate] = {}

    def run(self, command: Command[R]) -> R:
        """Run one command; when it raises, everything it recorded is undone and its neighbours do not notice."""
        mark = len(self.events)
        self._command, self._changing = command, {}
        try:
            result = command.decide(self)
            for aggregate in self._changing.values():
                aggregate.check()
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
        if aggregate.id.int not in self._changing:
            self._begin_to_change(aggregate)
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

    def _begin_to_change(self, aggregate: Aggregate) -> None:
        number = aggregate.id.int
        self._changing[number] = aggregate
        if number not in self.touched:
            self.touched[number] = aggregate
            if aggregate.version:  # what was blank before is made anew instead of kept
                self._before[number] = aggregate.copy()

    def _roll_back(self, mark: int) -> None:
        """Drop the events after the mark, and put what they changed back: its state before the batch, and on it what
        this batch's earlier commands recorded. Failing after recording is rare, so that is where the work is done."""
        del self.events[mark:]
        for number, changed in self._changing.items():
            before = self._before.get(number)
            aggregate = type(changed)(changed.id) if before is None else before.copy()
            for event in self.events:
                if event.originator_id == changed.id:
                    event.evolve(aggregate)
            self._cache.put(aggregate)
            if aggregate.version == (before.version if before else 0):
                self.touched.pop(number)
                self._before.pop(number, None)
            else:
                self.touched[number] = aggregate
