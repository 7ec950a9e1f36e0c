"""Maps events to stored events with the closed registry and the fast codec, in place of the library's topics by
path."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent

from domain import events
from domain.eventsourced import DomainEvent


class MismatchedEvent(ValueError):
    """A stored event's columns and payload disagree: the row was changed by hand."""


class EventMapper(Mapper[UUID]):
    """``eventsourcing``'s mapper over ``domain.events``."""

    def __init__(self) -> None:
        super().__init__(transcoder=JSONTranscoder())

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        event = cast("DomainEvent", domain_event)
        return StoredEvent(event.originator_id, event.originator_version, event.TOPIC, events.encode(event))

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEvent:
        event = events.decode(stored_event.topic, stored_event.state)
        if (event.originator_id, event.originator_version) != (
            stored_event.originator_id,
            stored_event.originator_version,
        ):
            raise MismatchedEvent(f"{stored_event.originator_id} version {stored_event.originator_version}")
        return event
