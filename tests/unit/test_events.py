from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_type_hints
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import events
from domain.events import EVENT_CLASSES, UnknownEvent, UnreadableEvent, decode, encode
from domain.eventsourced import Actor, DomainEvent
from domain.journal import Posting
from domain.pricing import Quote
from domain.wallet import HoldPlaced, HoldReleased, Split
from tests.support.event_fixtures import current_of

texts = st.text(max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
postings = st.builds(Posting, texts, texts, texts, integers)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    UUID: st.uuids(),
    UUID | None: st.none() | st.uuids(),
    datetime | None: st.none() | st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.just(UTC)),  # noqa: DTZ001  # st adds the zone
    int: integers,
    str: texts,
    bool: st.booleans(),
    datetime: st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.just(UTC)),  # noqa: DTZ001  # st adds the zone
    Actor: st.builds(Actor, texts, texts),
    Quote: st.builds(Quote, integers, integers, texts, integers, integers),
    Split: st.builds(Split, *[integers] * 5),
    tuple[str, ...]: st.lists(texts, max_size=3).map(tuple),
    tuple[Posting, ...]: st.lists(postings, max_size=3).map(tuple),
    dict[str, str]: st.dictionaries(texts, texts, max_size=3),
    dict[str, str | int]: st.dictionaries(texts, texts | integers, max_size=3),
}


@st.composite
def instances(draw: st.DrawFn, cls: type[DomainEvent]) -> DomainEvent:
    """Any event of a class, made from the types of its members."""
    hints = get_type_hints(cls)
    members = {name: draw(VALUES[hints[name]]) for name in cls.__struct_fields__}
    return cls(**{**members, "schema_version": cls.SCHEMA_VERSION})


any_event = st.sampled_from(EVENT_CLASSES).flatmap(instances)


def payload(topic: str) -> dict[str, Any]:
    """The members of the stored example of a topic."""
    return dict(json.loads(current_of(topic)))


class TestRegistry:
    def test_every_class_has_a_topic_of_its_own(self) -> None:
        topics = [cls.TOPIC for cls in EVENT_CLASSES]
        assert len(set(topics)) == len(topics)
        assert all(topic.partition(".")[2] == cls.__name__ for topic, cls in zip(topics, EVENT_CLASSES, strict=True))

    def test_every_event_of_the_domain_is_registered(self) -> None:
        assert set(DomainEvent.__subclasses__()) == set(EVENT_CLASSES)

    def test_no_event_holds_a_float(self) -> None:
        for cls in EVENT_CLASSES:
            assert not {name for name, hint in get_type_hints(cls).items() if "float" in str(hint)}, cls.TOPIC


class TestRoundTrip:
    @given(any_event)
    def test_an_event_is_read_as_it_was_written(self, event: DomainEvent) -> None:
        stored = encode(event)
        assert decode(event.TOPIC, stored) == event
        assert encode(decode(event.TOPIC, stored)) == stored

    @given(any_event)
    def test_what_is_stored_is_compact_json_with_the_envelope_first(self, event: DomainEvent) -> None:
        stored = encode(event)
        members = json.loads(stored)
        assert list(members)[:6] == [
            "originator_id",
            "originator_version",
            "schema_version",
            "occurred_at",
            "actor",
            "correlation_id",
        ]
        assert json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode() == stored

    def test_maps_are_written_in_one_order(self) -> None:
        registered = payload("ProviderMachine.MachineRegistered")
        hardware = registered["hardware"]
        turned = {**registered, "hardware": dict(reversed(hardware.items()))}
        one, other = (
            encode(decode("ProviderMachine.MachineRegistered", json.dumps(form).encode()))
            for form in (registered, turned)
        )
        assert one == other

    def test_members_that_a_later_build_may_add_are_ignored(self) -> None:
        stored = json.dumps({**payload("Wallet.HoldReleased"), "colour": "green"}).encode()
        assert decode("Wallet.HoldReleased", stored) == decode("Wallet.HoldReleased", current_of("Wallet.HoldReleased"))


class TestWhatCannotBeRead:
    def test_an_unknown_topic_is_never_looked_for_anywhere(self) -> None:
        with pytest.raises(UnknownEvent, match=r"os\.system"):
            decode("os.system", b"{}")

    @pytest.mark.parametrize("topic", [cls.TOPIC for cls in EVENT_CLASSES])
    def test_a_newer_version_is_refused_instead_of_misread(self, topic: str) -> None:
        newer = payload(topic)["schema_version"] + 1
        with pytest.raises(UnknownEvent, match=f"version {newer}"):
            decode(topic, json.dumps({**payload(topic), "schema_version": newer}).encode())

    def test_a_newer_version_with_another_shape_is_refused_as_well(self) -> None:
        with pytest.raises(UnknownEvent, match="version 7"):
            decode("Wallet.HoldReleased", b'{"schema_version":7,"released":{"usd":5}}')

    def test_a_version_below_the_first_has_no_path(self) -> None:
        with pytest.raises(UnknownEvent, match="version 0"):
            decode("Wallet.HoldReleased", json.dumps({**payload("Wallet.HoldReleased"), "schema_version": 0}).encode())

    @pytest.mark.parametrize("member", [name for name in payload("Wallet.HoldReleased") if name != "schema_version"])
    def test_a_missing_member_is_not_made_up(self, member: str) -> None:
        damaged = payload("Wallet.HoldReleased")
        del damaged[member]
        with pytest.raises(UnreadableEvent):
            decode("Wallet.HoldReleased", json.dumps(damaged).encode())

    @pytest.mark.parametrize(
        "changes", [{"released": "5"}, {"released": 5.5}, {"reason": None}, {"originator_id": "x"}]
    )
    def test_a_member_of_another_type_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UnreadableEvent):
            decode("Wallet.HoldReleased", json.dumps({**payload("Wallet.HoldReleased"), **changes}).encode())

    @pytest.mark.parametrize(
        "state",
        [b"", b"{", b"null", b"[]", b"{}", b'"text"', b"\xff\xfe", current_of("Wallet.HoldReleased")[:-1]],
    )
    def test_bytes_that_are_no_event_are_refused_by_their_topic(self, state: bytes) -> None:
        with pytest.raises(UnreadableEvent, match=r"Wallet\.HoldReleased"):
            decode("Wallet.HoldReleased", state)

    @pytest.mark.parametrize("version", ["1", 1.5, None, True, [1]])
    def test_a_version_that_is_no_number_is_refused(self, version: object) -> None:
        damaged = {**payload("Wallet.HoldReleased"), "schema_version": version}
        with pytest.raises((UnreadableEvent, UnknownEvent)):
            decode("Wallet.HoldReleased", json.dumps(damaged).encode())


class TestUpcasts:
    @pytest.fixture
    def third_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if ``reason`` had been called ``why`` in version 1, and had been a list in version 2."""

        def to_second(old: dict[str, Any]) -> dict[str, Any]:
            return {**old, "reason": [old.pop("why")]}

        def to_third(old: dict[str, Any]) -> dict[str, Any]:
            return {**old, "reason": old["reason"][0]}

        monkeypatch.setattr(HoldReleased, "SCHEMA_VERSION", 3)
        topic = HoldReleased.TOPIC
        monkeypatch.setattr(events, "UPCASTS", {(topic, 1): to_second, (topic, 2): to_third})

    @pytest.mark.usefixtures("third_version")
    def test_an_old_event_is_read_along_the_whole_path(self) -> None:
        first = payload("Wallet.HoldReleased")
        first["why"] = first.pop("reason")
        event = decode("Wallet.HoldReleased", json.dumps(first).encode())
        assert isinstance(event, HoldReleased)
        assert (event.reason, event.schema_version, event.released) == ("failed", 3, first["released"])

    @pytest.mark.usefixtures("third_version")
    def test_an_event_from_the_middle_takes_the_rest_of_the_path(self) -> None:
        second = {**payload("Wallet.HoldReleased"), "schema_version": 2, "reason": ["cancelled"]}
        event = decode("Wallet.HoldReleased", json.dumps(second).encode())
        assert isinstance(event, HoldReleased)
        assert (event.reason, event.schema_version) == ("cancelled", 3)

    @pytest.mark.usefixtures("third_version")
    def test_an_old_event_that_happens_to_fit_the_new_shape_is_upcast_all_the_same(self) -> None:
        fitting = {**payload("Wallet.HoldReleased"), "why": "expired"}
        event = decode("Wallet.HoldReleased", json.dumps(fitting).encode())
        assert isinstance(event, HoldReleased)
        assert (event.reason, event.schema_version) == ("expired", 3)

    @pytest.mark.usefixtures("third_version")
    def test_the_current_version_is_left_alone(self) -> None:
        current = {**payload("Wallet.HoldReleased"), "schema_version": 3}
        event = decode("Wallet.HoldReleased", json.dumps(current).encode())
        assert isinstance(event, HoldReleased)
        assert event.reason == "failed"

    @pytest.mark.usefixtures("third_version")
    def test_a_path_with_a_gap_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "UPCASTS", {("Wallet.HoldReleased", 1): lambda old: old})
        with pytest.raises(UnknownEvent, match="version 2"):
            decode("Wallet.HoldReleased", json.dumps(payload("Wallet.HoldReleased")).encode())

    def test_an_upcast_that_makes_no_event_is_unreadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(HoldPlaced, "SCHEMA_VERSION", 2)
        monkeypatch.setattr(events, "UPCASTS", {("Wallet.HoldPlaced", 1): lambda old: {**old, "amount": "many"}})
        with pytest.raises(UnreadableEvent):
            decode("Wallet.HoldPlaced", current_of("Wallet.HoldPlaced"))
