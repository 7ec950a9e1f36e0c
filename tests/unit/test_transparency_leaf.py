"""The leaf of an event, and the line that carries it in exports and proofs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.transparency import export, leaf
from domain.transparency.export import MalformedLine, NotExportable
from domain.transparency.leaf import LoggedEvent, MalformedLeaf
from tests.support.transparency import event, exported

EVENT = LoggedEvent(
    position=1,
    originator_id=UUID("00112233-4455-6677-8899-aabbccddeeff"),
    originator_version=2,
    topic="Wallet.HoldCaptured",
    recorded_us=leaf.microseconds_of(datetime(2026, 11, 24, 8, 0, 0, 123456, tzinfo=UTC)),
    payload=b'{"captured":100}',
)
CALENDAR_US = leaf.microseconds_of(datetime(9999, 12, 31, tzinfo=UTC))

events = st.builds(
    LoggedEvent,
    position=st.integers(1, 2**63 - 1),
    originator_id=st.uuids(),
    originator_version=st.integers(1, 2**31 - 1),
    topic=st.text(st.characters(codec="utf-8"), max_size=40),
    recorded_us=st.integers(-(10**15), CALENDAR_US),
    payload=st.binary(max_size=200) | st.text(st.characters(codec="utf-8"), max_size=50).map(str.encode),
)


def test_a_leaf_is_six_fields_with_their_lengths() -> None:
    fields = [
        bytes.fromhex("0000000000000001"),
        bytes.fromhex("00112233445566778899aabbccddeeff"),
        bytes.fromhex("00000002"),
        b"Wallet.HoldCaptured",
        (848_822_400_123_456).to_bytes(8, "big"),
        b'{"captured":100}',
    ]

    assert leaf.encode(EVENT) == b"".join(len(field).to_bytes(4, "big") + field for field in fields)


@given(events)
def test_a_leaf_is_read_back_as_what_it_was(event: LoggedEvent) -> None:
    assert leaf.decode(leaf.encode(event)) == event


@given(events, events)
def test_different_events_have_different_leaves(one: LoggedEvent, other: LoggedEvent) -> None:
    assert (leaf.encode(one) == leaf.encode(other)) == (one == other)


def test_bytes_that_are_no_leaf_are_refused() -> None:
    good = leaf.encode(EVENT)
    for bad in (b"", good[:-1], good + b"x", good[:20], b"\xff" + good[1:], good.replace(b"Wallet", b"\xffallet")):
        with pytest.raises(MalformedLeaf):
            leaf.decode(bad)


@given(events)
def test_a_line_is_read_back_as_what_it_was(event: LoggedEvent) -> None:
    line = export.encode_line(export.line_of(event, export.hash_of(event)))

    assert line.endswith(b"}\n")
    assert b"\n" not in line[:-1]
    assert export.parse_line(line) == (event, export.hash_of(event))


def test_a_payload_stands_as_text_that_any_tool_can_read() -> None:
    line = json.loads(exported([EVENT])[0])

    assert line == {
        "position": 1,
        "originator_id": "00112233-4455-6677-8899-aabbccddeeff",
        "originator_version": 2,
        "topic": "Wallet.HoldCaptured",
        "recorded_at": "2026-11-24T08:00:00.123456Z",
        "leaf_hash": export.hash_of(EVENT).hex(),
        "payload": '{"captured":100}',
    }


def test_a_payload_that_is_no_text_stands_as_base64() -> None:
    broken = EVENT._replace(payload=b"\xff")

    assert json.loads(exported([broken])[0])["payload_base64"] == "/w=="


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b'"position":1', b'"position": 1'),
        (b'"position":1', b'"position":1.0'),
        (b'"position":1', b'"position":9223372036854775808'),
        (b"aabbccddeeff", b"AABBCCDDEEFF"),
        (b"00112233-4455", b"001122334455"),
        (b"123456Z", b"123456z"),
        (b"123456Z", b"12345Z"),
        (b"2026-11-24", b"2026-11-31"),
        (b'"payload":', b'"other":1,"payload":'),
        (b'"topic":', b'"topic":"x","topic":'),
        (b"Wallet", b"W\\u0061llet"),
        (b'"leaf_hash":"', b'"leaf_hash":"00'),
        (b'"payload":"', b'"payload_base64":"e30=","payload":"'),
        (b"}\n", b"}"),
        (b"}\n", b"}\r\n"),
    ],
)
def test_a_line_has_exactly_one_way_to_be_written(good: bytes, bad: bytes) -> None:
    line = exported([EVENT])[0]
    assert good in line

    with pytest.raises(MalformedLine):
        export.parse_line(line.replace(good, bad, 1))


def test_a_member_in_the_wrong_form_is_refused_in_a_proof_as_well() -> None:
    line = export.line_of(EVENT, export.hash_of(EVENT))

    assert export.event_of(line) == (EVENT, export.hash_of(EVENT))
    for changes in (
        {"leaf_hash": "00"},
        {"leaf_hash": line.leaf_hash.upper()},
        {"recorded_at": "yesterday"},
        {"recorded_at": "2026-11-24T24:00:00.000000Z"},
        {"position": 2**63},
        {"originator_version": 2**31},
        {"payload": None},
        {"payload": None, "payload_base64": "e30="},
        {"payload": None, "payload_base64": "/x=="},
        {"payload_base64": "/w=="},
    ):
        with pytest.raises(MalformedLine):
            export.event_of(msgspec.structs.replace(line, **changes))


def test_a_time_outside_of_the_calendar_cannot_be_exported_and_its_position_is_named() -> None:
    never = event(7)._replace(recorded_us=2**63 - 1)

    with pytest.raises(NotExportable, match="position 7"):
        exported([never])


def test_times_are_exact_to_the_microsecond() -> None:
    moment = datetime(2031, 5, 6, 7, 8, 9, 999_999, tzinfo=UTC)

    assert EVENT._replace(recorded_us=leaf.microseconds_of(moment)).recorded_at == moment
    assert leaf.microseconds_of(leaf.EPOCH - timedelta(microseconds=1)) == -1
