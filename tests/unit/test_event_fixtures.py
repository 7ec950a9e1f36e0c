"""Every event that was ever stored stays readable: fixtures of each version, shapes that cannot drift, upcasts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain import events, upcasts
from domain.machines import MachineRegistered
from domain.requests import JobCompleted, JobDispatched, RequestAdmitted, RequestSettled, UsageClaimClamped
from domain.wallet import HoldReleased
from tests.support import event_fixtures
from tests.support.event_fixtures import FOLDER, StoredEvent, problems, stored_events, write_missing

STORED = stored_events()
CLASSES = {cls.TOPIC: cls for cls in events.EVENT_CLASSES}


def name_of(stored: StoredEvent) -> str:
    return f"{stored.topic} v{stored.version}"


def test_every_version_of_every_event_has_its_fixture_its_shape_and_its_upcast() -> None:
    assert list(problems()) == []


@pytest.mark.parametrize("stored", STORED, ids=name_of)
def test_a_stored_event_of_any_version_is_read_as_one_of_today(stored: StoredEvent) -> None:
    event = events.decode(stored.topic, stored.state)
    assert (type(event), event.schema_version) == (CLASSES[stored.topic], CLASSES[stored.topic].SCHEMA_VERSION)
    assert msgspec.json.decode(stored.state)["schema_version"] == stored.version


@pytest.mark.parametrize(
    "stored", [stored for stored in STORED if stored.version == CLASSES[stored.topic].SCHEMA_VERSION], ids=name_of
)
def test_an_event_of_today_is_stored_as_exactly_these_bytes(stored: StoredEvent) -> None:
    assert events.encode(events.decode(stored.topic, stored.state)) == stored.state


def test_the_machine_of_an_old_log_has_no_key_and_the_rest_of_what_was_said() -> None:
    first, second = (
        events.decode(stored.topic, stored.state) for stored in STORED if stored.topic == MachineRegistered.TOPIC
    )
    assert isinstance(first, MachineRegistered)
    assert isinstance(second, MachineRegistered)
    assert (first.provider_key, second.provider_key) == ("", "provider-key")
    assert msgspec.structs.replace(first, provider_key="provider-key") == second


def test_an_old_quote_has_one_price_for_the_whole_prompt_and_an_old_settlement_remembered_nothing() -> None:
    for cls in (RequestAdmitted, JobDispatched):
        *old, new = (events.decode(*stored[::2]) for stored in STORED if stored.topic == cls.TOPIC)
        assert [event.quote.cache_read_price for event in old] == [event.quote.input_price for event in old]
        assert len(old) == 2
        assert new.quote.cache_read_price != new.quote.input_price
    for topic, member in (
        (JobCompleted.TOPIC, "cached_tokens"),
        (RequestSettled.TOPIC, "cached_tokens"),
        (UsageClaimClamped.TOPIC, "claimed_cached_tokens"),
    ):
        first, second, third = (events.decode(*stored[::2]) for stored in STORED if stored.topic == topic)
        assert (getattr(first, member), getattr(second, member)) == (0, 0)
        assert msgspec.structs.replace(second, **{member: getattr(third, member)}) == third


# --- that the watch can fail -----------------------------------------------------------------------------------------


def test_a_member_more_without_a_new_version_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    shutil.copytree(FOLDER, folder)
    promised = folder / HoldReleased.TOPIC / "v1.shape.json"
    promised.write_text(promised.read_text().replace(',\n  "reason": "str"', ""))
    assert list(problems(folder)) == [
        "Wallet.HoldReleased has other members than version 1 promises: give it a new version"
    ]


def test_a_new_version_without_fixture_and_upcast_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HoldReleased, "SCHEMA_VERSION", 2)
    assert list(problems()) == [
        "Wallet.HoldReleased version 2 has no fixture",
        "Wallet.HoldReleased has no upcast from version 1",
    ]


def test_an_upcast_that_is_gone_is_found_and_the_old_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = (MachineRegistered.TOPIC, 1)
    monkeypatch.setattr(events, "UPCASTS", {key: one for key, one in upcasts.UPCASTS.items() if key != gone})
    assert list(problems()) == ["ProviderMachine.MachineRegistered has no upcast from version 1"]
    with pytest.raises(events.UnknownEvent, match="version 1"):
        events.decode(MachineRegistered.TOPIC, (FOLDER / MachineRegistered.TOPIC / "v1.json").read_bytes())


def test_an_event_that_leaves_the_registry_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(cls for cls in events.EVENT_CLASSES if cls is not HoldReleased)
    monkeypatch.setattr(events, "EVENT_CLASSES", others)
    assert list(problems()) == ["Wallet.HoldReleased version 1 was stored once and is known no more"]


def test_an_upcast_from_the_newest_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[tuple[str, int], Any] = {**upcasts.UPCASTS, (HoldReleased.TOPIC, 1): dict}
    monkeypatch.setattr(events, "UPCASTS", more)
    assert list(problems()) == ["there is an upcast from Wallet.HoldReleased version 1, which has no next one"]


def test_missing_files_are_written_and_others_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    shutil.copytree(FOLDER, folder)
    lost = folder / HoldReleased.TOPIC / "v1.json"
    lost.unlink()
    assert list(problems(folder)) == ["Wallet.HoldReleased version 1 has no fixture"]

    assert write_missing(folder) == [lost]

    assert list(problems(folder)) == []
    assert isinstance(events.decode(HoldReleased.TOPIC, lost.read_bytes()), HoldReleased)
    assert write_missing(folder) == []


def test_an_example_can_be_made_of_every_event(tmp_path: Path) -> None:
    write_missing(tmp_path)
    for stored in stored_events(tmp_path):
        events.decode(stored.topic, stored.state)
    assert event_fixtures.stored_events(tmp_path) != []
