from __future__ import annotations

from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from adapters.postgres.mapper import EventMapper, MismatchedEvent
from domain.events import UnknownEvent, UnreadableEvent
from tests.support.stored_events import VERSION_1

ORIGINATOR = UUID(int=0x1234)


@pytest.mark.parametrize(("topic", "state"), VERSION_1, ids=[topic for topic, _ in VERSION_1])
def test_an_event_goes_to_its_row_and_back(topic: str, state: bytes) -> None:
    mapper = EventMapper()
    stored = StoredEvent(ORIGINATOR, 1, topic, state)
    assert mapper.to_stored_event(mapper.to_domain_event(stored)) == stored


@pytest.mark.parametrize(("originator", "version"), [(UUID(int=1), 1), (ORIGINATOR, 2)])
def test_a_row_whose_columns_were_changed_by_hand_is_refused(originator: UUID, version: int) -> None:
    topic, state = VERSION_1[0]
    with pytest.raises(MismatchedEvent):
        EventMapper().to_domain_event(StoredEvent(originator, version, topic, state))


def test_a_topic_is_looked_up_in_the_registry_and_never_imported() -> None:
    with pytest.raises(UnknownEvent):
        EventMapper().to_domain_event(StoredEvent(ORIGINATOR, 1, "os:system", b"{}"))


def test_bytes_that_are_no_event_are_refused() -> None:
    with pytest.raises(UnreadableEvent):
        EventMapper().to_domain_event(StoredEvent(ORIGINATOR, 1, VERSION_1[0][0], b"{}"))
