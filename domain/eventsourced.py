"""The base of every event and aggregate.

Events are frozen ``msgspec`` structs that mutate aggregates through ``eventsourcing``'s ``CanMutateAggregate``:
the library checks that an event belongs to its aggregate and is the next one, ``apply`` only assigns. Decisions are
made in commands, never in ``apply``, because events are replayed under the rules of a later day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import sha1
from typing import Any, ClassVar, NamedTuple, Self, TypeVar
from uuid import UUID

import msgspec
from eventsourcing.domain import CanMutateAggregate, OriginatorIDError, OriginatorVersionError

_NAMESPACE = UUID("6f3f2f0e-5f0c-5b1a-9d3a-0a54d7a7f2b4")


class Actor(msgspec.Struct, frozen=True):
    """Who caused an event. ``kind`` is consumer, provider, admin, stripe or system."""

    kind: str
    id: str


class DomainEvent(CanMutateAggregate[UUID], msgspec.Struct, frozen=True, kw_only=True):
    """A fact about one aggregate. ``originator_id`` and ``originator_version`` identify it for ever.

    ``timestamp`` (stored as ``occurred_at``) is domain time; the time of recording stands beside the event in the log.
    ``correlation_id`` is the inference request, provider session or operator command that led here.
    """

    TOPIC: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int] = 1

    originator_id: UUID
    originator_version: int
    schema_version: int
    timestamp: datetime = msgspec.field(name="occurred_at")
    actor: Actor
    correlation_id: str

    def apply(self, aggregate: Any) -> None:
        """Assign what this event says to its aggregate; nothing else."""

    def evolve(self, aggregate: Aggregate) -> None:
        """Apply this event to its aggregate, after checking that it is the next one of that aggregate.

        Raises:
            OriginatorIDError, OriginatorVersionError: it is not.
        """
        # What the library's mutate() does, in half of its time: a ledger does this for every event, in every replay.
        if self.originator_id.int != aggregate.id.int:
            raise OriginatorIDError(self.originator_id, aggregate.id)
        if self.originator_version != aggregate.version + 1:
            raise OriginatorVersionError(self.originator_version, aggregate.version + 1)
        self.apply(aggregate)
        aggregate.version = self.originator_version
        aggregate.modified_on = self.timestamp


class Aggregate:
    """A consistency boundary. Version 0 is the blank state that exists before any event.

    A kind whose history grows for years has ``SNAPSHOT_VERSION`` above 0 and implements ``state`` and ``restore``; the
    number goes up with every change of what a snapshot means, and snapshots of another number are never read.
    ``snapshot_at`` is the version of the newest snapshot that this state came from or went into.
    """

    KIND: ClassVar[str]
    SNAPSHOT_VERSION: ClassVar[int] = 0

    def __init__(self, aggregate_id: UUID) -> None:
        self.id = aggregate_id
        self.version = 0
        self.modified_on: datetime | None = None
        self.snapshot_at = 0

    @classmethod
    def id_of(cls, key: str) -> UUID:
        """The id that follows from the business key, so that a retried command finds what it made before."""
        return _id_of(cls.KIND, key)

    @property
    def exists(self) -> bool:
        return self.version > 0

    def copy(self) -> Self:
        """A copy that later events on the original do not reach."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def state(self) -> bytes:
        """Everything that the events so far made of this aggregate, but for its id and version."""
        raise NotImplementedError

    def restore(self, state: bytes) -> None:
        """Take up a state that this class wrote."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise InvariantViolated when the state is one that must never be."""


@lru_cache(maxsize=65_536)
def _id_of(kind: str, key: str) -> UUID:
    # Each command names its aggregates several times, and a request's commands name the same ones within a second.
    return named_id(_NAMESPACE, f"{kind}:{key}")


def named_id(namespace: UUID, name: str) -> UUID:
    """The id that follows from a name: exactly the library's ``uuid5``, in little more than half of its time."""
    return UUID(bytes=sha1(namespace.bytes + name.encode(), usedforsecurity=False).digest()[:16], version=5)


A = TypeVar("A", bound=Aggregate)


class Written(NamedTuple):
    """What one transaction appends to the log. ``touched`` are the aggregates that it changes, in their state after it,
    by the number inside of their id: a hash of the id itself costs five times as much."""

    first_position: int
    recorded_at: datetime
    events: Sequence[DomainEvent]
    touched: Mapping[int, Aggregate]

    def changed(self, kind: type[A]) -> list[A]:
        """The aggregates of one kind that something was recorded for."""
        return [found for found in self.touched.values() if isinstance(found, kind)]


class Ref(msgspec.Struct, frozen=True):
    """Names one aggregate before it is loaded."""

    kind: type[Aggregate]
    id: UUID


def ref(kind: type[Aggregate], key: str) -> Ref:
    return Ref(kind, kind.id_of(key))
