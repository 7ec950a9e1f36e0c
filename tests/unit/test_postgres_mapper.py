from __future__ import annotations

from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from adapters.postgres.mapper import EventMapper, MismatchedEvent
from domain.events import EVENT_CLASSES, UnknownEvent, UnreadableEvent
from tests.support.event_fixtures import current_of

ORIGINATOR = UUID(int=0x1234)


@pytest.mark.parametrize("topic", [cls.TOPIC for cls in EVENT_CLASSES])
def test_an_event_goes_to_its_row_and_back(topic: str) -> None:
    mapper = EventMapper()
    stored = StoredEvent(ORIGINATOR, 1, topic, current_of(topic))
    assert mapper.to_stored_event(mapper.to_domain_event(stored)) == stored


@pytest.mark.parametrize(("originator", "version"), [(UUID(int=1), 1), (ORIGINATOR, 2)])
def test_a_row_whose_columns_were_changed_by_hand_is_refused(originator: UUID, version: int) -> None:
    topic = "Wallet.HoldPlaced"
    with pytest.raises(MismatchedEvent):
        EventMapper().to_domain_event(StoredEvent(originator, version, topic, current_of(topic)))


def test_a_topic_is_looked_up_in_the_registry_and_never_imported() -> None:
    with pytest.raises(UnknownEvent):
        EventMapper().to_domain_event(StoredEvent(ORIGINATOR, 1, "os:system", b"{}"))


def test_bytes_that_are_no_event_are_refused() -> None:
    with pytest.raises(UnreadableEvent):
        EventMapper().to_domain_event(StoredEvent(ORIGINATOR, 1, "Wallet.HoldPlaced", b"{}"))
