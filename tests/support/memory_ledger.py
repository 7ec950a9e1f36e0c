"""The ledger without a database: the real unit of work and cache over a log that is a list of stored bytes.

It follows the writer step by step (load, decide, store, forget what a failed commit touched), so that what a test finds
here is what the commands and the unit of work do, and no server has to run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from adapters.postgres.unit import AggregateCache, BatchUnit, NotLoaded
from domain import events
from domain.eventsourced import Aggregate, DomainEvent, Ref, Written
from domain.ledger import Command

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")

BEGINNING = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class Stored(NamedTuple):
    """One row of the log."""

    position: int
    originator_id: UUID
    originator_version: int
    topic: str
    state: bytes


class MemoryLedger:
    """Commands run in one open batch until ``commit``; ``execute`` does both at once.

    A small ``cache_max`` makes most commands load their aggregates from the log. Without a ``clock`` a second passes
    with each batch.
    """

    def __init__(self, *, cache_max: int = 1_000, clock: Callable[[], datetime] | None = None) -> None:
        self.cache = AggregateCache(cache_max)
        self.log: list[Stored] = []
        self._histories: defaultdict[UUID, list[Stored]] = defaultdict(list)
        self._clock = clock
        self.now = BEGINNING if clock is None else clock()
        self.unit = BatchUnit(self.cache, self.now)

    # --- commands --------------------------------------------------------------------------------------------------

    def execute(self, command: Command[R]) -> R:
        """Run a command and commit it."""
        result = self.run(command)
        self.commit()
        return result

    def run(self, command: Command[R]) -> R:
        """Run a command in the open batch."""
        for needed in command.needs():
            self._load(needed)
        while True:
            try:
                return self.unit.run(command)
            except NotLoaded as missing:
                self._load(missing.ref)

    def begin(self) -> None:
        """Let the open batch, in which nothing was recorded yet, be of this moment."""
        assert self._clock is not None
        assert not self.unit.events
        self.now = max(self._clock(), self.now)
        self.unit = BatchUnit(self.cache, self.now)

    def pending(self) -> Written:
        """What the open batch is about to append."""
        return Written(len(self.log) + 1, self.unit.now, tuple(self.unit.events), dict(self.unit.touched))

    def commit(self) -> Written:
        """Append what the open batch recorded, and begin the next one."""
        written = self.pending()
        for position, event in enumerate(written.events, written.first_position):
            row = Stored(position, event.originator_id, event.originator_version, event.TOPIC, events.encode(event))
            history = self._histories[row.originator_id]
            expected = len(history) + 1
            assert row.originator_version == expected, (
                f"{row.topic} is version {row.originator_version}, not {expected}"
            )
            history.append(row)
            self.log.append(row)
        self.cache.shrink()
        self._next_batch()
        return written

    def lose_commit(self) -> None:
        """The database failed: nothing of the open batch was written, and nothing that it touched may be believed."""
        self.cache.evict(self.unit.touched.values())
        self._next_batch()

    def let_time_pass(self, time: timedelta) -> None:
        """Between two batches."""
        assert not self.unit.events
        self.now += time
        self._next_batch()

    def _next_batch(self) -> None:
        self.now += timedelta(microseconds=1) if self._clock is not None else timedelta(seconds=1, microseconds=1)
        self.unit = BatchUnit(self.cache, self.now)

    def _load(self, needed: Ref) -> None:
        if self.cache.get(needed.id) is None:
            aggregate = needed.kind(needed.id)
            for row in self._histories[needed.id]:
                events.decode(row.topic, row.state).evolve(aggregate)
            self.cache.put(aggregate)

    # --- what a test looks at --------------------------------------------------------------------------------------

    @property
    def events(self) -> list[DomainEvent]:
        """The log as events, the open batch included."""
        return [*(events.decode(row.topic, row.state) for row in self.log), *self.unit.events]

    def state_of(self, kind: type[A], key: str) -> A:
        """The aggregate as it follows from the log and the open batch."""
        aggregate = kind(kind.id_of(key))
        for event in self.events:
            if event.originator_id == aggregate.id:
                event.evolve(aggregate)
        return aggregate


def reread(recorded: Sequence[DomainEvent]) -> list[DomainEvent]:
    """The events as a reader of their stored bytes finds them."""
    return [events.decode(event.TOPIC, events.encode(event)) for event in recorded]


def replayed(recorded: Sequence[DomainEvent], kinds: dict[str, type[Aggregate]]) -> dict[UUID, Aggregate]:
    """Every aggregate, rebuilt from nothing. ``kinds`` names the aggregate class of each topic's first part."""
    found: dict[UUID, Aggregate] = {}
    for event in recorded:
        aggregate = found.get(event.originator_id)
        if aggregate is None:
            aggregate = found[event.originator_id] = kinds[event.TOPIC.partition(".")[0]](event.originator_id)
        event.evolve(aggregate)
    return found


def state(aggregate: Any) -> dict[str, Any]:
    """Everything that an aggregate knows, for comparing two of them."""
    return {name: value for name, value in vars(aggregate).items() if name != "id"}
