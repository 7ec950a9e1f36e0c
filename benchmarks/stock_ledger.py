"""The same ledger commands on the unmodified library: its event store, its PostgreSQL recorder, one save a command."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.persistence import EventStore, IntegrityError
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict

from adapters.postgres.mapper import EventMapper
from domain.eventsourced import Aggregate, DomainEvent
from domain.ledger import Command

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")

TRIES_MAX = 50


class StockLedger:
    """Loads through the library's event store (with a cache, as its applications have), and saves once a command.

    Losing the race for an aggregate's next version means doing the command again, as the library's users do.
    """

    def __init__(self, dsn: str, *, cache_max: int) -> None:
        where = conninfo_to_dict(dsn)
        self._datastore = PostgresDatastore(
            dbname=str(where.get("dbname", "")),
            host=str(where.get("host", "")),
            port=str(where.get("port", "5432")),
            user=str(where.get("user", "")),
            password=str(where.get("password", "")),
            pool_size=10,
        )
        recorder = PostgresApplicationRecorder(self._datastore, events_table_name="stock_events")
        recorder.create_table()
        self._store: EventStore[UUID] = EventStore(EventMapper(), recorder)
        self._cache: OrderedDict[UUID, Aggregate] = OrderedDict()
        self._cache_max = cache_max
        self._lock = threading.Lock()

    def execute(self, command: Command[R]) -> R:
        for _ in range(TRIES_MAX):
            unit = _Unit(self, command)
            result = command.decide(unit)
            if not unit.events:
                return result
            try:
                self._store.put(unit.events)
            except IntegrityError:
                self._forget(unit.used)
                continue
            self._keep(unit.used)
            return result
        raise RuntimeError("the command lost every race")

    def execute_together(self, commands: Iterable[Command[Any]]) -> None:
        """Run commands that share no aggregate and save them at once: for setting up, not for measuring."""
        units = [_Unit(self, command) for command in commands]
        for unit in units:
            unit.command.decide(unit)
        self._store.put([event for unit in units for event in unit.events])

    def close(self) -> None:
        self._datastore.close()

    def load(self, kind: type[A], aggregate_id: UUID) -> A:
        with self._lock:
            known = self._cache.get(aggregate_id)
        found = known.copy() if isinstance(known, kind) else kind(aggregate_id)
        for event in self._store.get(aggregate_id, gt=found.version or None):
            event.evolve(found)  # type: ignore[attr-defined]  # the mapper gives our own events
        return found

    def _keep(self, used: dict[UUID, Aggregate]) -> None:
        with self._lock:
            for aggregate_id, aggregate in used.items():
                self._cache[aggregate_id] = aggregate
                self._cache.move_to_end(aggregate_id)
            while len(self._cache) > self._cache_max:
                self._cache.popitem(last=False)

    def _forget(self, used: dict[UUID, Aggregate]) -> None:
        with self._lock:
            for aggregate_id in used:
                self._cache.pop(aggregate_id, None)


class _Unit:
    def __init__(self, stock: StockLedger, command: Command[Any]) -> None:
        self.now = datetime.now(UTC)
        self.events: list[DomainEvent] = []
        self.used: dict[UUID, Aggregate] = {}
        self._stock = stock
        self.command = command

    def get(self, kind: type[A], key: str) -> A:
        aggregate_id = kind.id_of(key)
        if aggregate_id not in self.used:
            self.used[aggregate_id] = self._stock.load(kind, aggregate_id)
        found = self.used[aggregate_id]
        assert isinstance(found, kind)
        return found

    def fresh(self, kind: type[A], key: str) -> A:
        found = kind(kind.id_of(key))
        self.used[found.id] = found
        return found

    def record(self, aggregate: Aggregate, event: type[DomainEvent], **payload: Any) -> None:
        recorded = event(
            originator_id=aggregate.id,
            originator_version=aggregate.version + 1,
            schema_version=event.SCHEMA_VERSION,
            timestamp=self.now,
            actor=self.command.actor,
            correlation_id=self.command.correlation_id,
            **payload,
        )
        recorded.evolve(aggregate)
        self.events.append(recorded)
