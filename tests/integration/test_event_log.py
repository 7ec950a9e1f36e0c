"""The log as it stands in the database: readable by anybody, and refused where it does not fit its own columns."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import msgspec
import pytest
from eventsourcing.persistence import StoredEvent

from adapters.postgres.mapper import EventMapper, MismatchedEvent
from adapters.postgres.writer import LedgerWriter
from domain import events
from domain.adjusting import ApproveAdjustment, RejectAdjustment
from domain.closing import ClosePeriod, LockPeriod
from domain.events import UnknownEvent, UnreadableEvent
from domain.eventsourced import Actor
from domain.inviting import CreateInvite, DeactivateInvite, RedeemInvite
from domain.key_budgets import KeyLimit
from domain.ledger import CloseSession, OpenAccount, OpenSession
from domain.machines import MachineRegistered, ProviderMachine
from domain.requests import JobFailure, job_id_of
from projections.doctor import examine
from tests.support.event_fixtures import FOLDER
from tests.support.ledger_commands import (
    FIRST_ADMIN,
    GATEWAY,
    SECOND_ADMIN,
    account,
    admit,
    dispatch,
    grant,
    propose,
    release,
    settle,
    settled_request,
)
from tests.support.ledger_tables import log_of
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

CURRENT_VERSIONS = {cls.TOPIC: cls.SCHEMA_VERSION for cls in events.EVENT_CLASSES}


def write_one_of_each(writer: LedgerWriter) -> None:
    """Every kind of event that this build knows."""
    consumer, provider, machine_id = account("consumer"), account("provider"), "cd" * 32
    writer.execute(OpenAccount(account_id=consumer))
    writer.execute(grant(consumer, 10_000))
    session = {"machine_id": machine_id, "session_id": str(uuid4())}
    writer.execute(
        OpenSession(
            **session,
            gateway_id=str(GATEWAY),
            provider_key="key",
            hardware={"chip": "Apple M4", "memory_gb": 64},
            models=("acme/small-8bit",),
            account_id=provider,
        )
    )
    settled_request(writer, consumer, hold=100, cost=60, provider=provider)
    over_claimed, given_up = uuid4(), uuid4()
    writer.execute(admit(consumer, 100, over_claimed))
    writer.execute(dispatch(over_claimed))
    writer.execute(msgspec.structs.replace(settle(consumer, over_claimed, 50), claimed_completion_tokens=99))
    writer.execute(admit(consumer, 100, given_up))
    writer.execute(dispatch(given_up))
    limit = KeyLimit(1_000, "daily")
    for end in (settle, lambda who, which, _: release(who, which)):
        limited = uuid4()
        writer.execute(msgspec.structs.replace(admit(consumer, 100, limited), key_limit=limit))
        writer.execute(dispatch(limited))
        writer.execute(end(consumer, limited, 50))
    failure = JobFailure(str(job_id_of(given_up, 1)), "timeout", 504)
    writer.execute(msgspec.structs.replace(release(consumer, given_up), failures=(failure,)))
    writer.execute(CloseSession(**session, requests_served=1, tokens_generated=60, reason="bye"))
    for decide in (ApproveAdjustment, RejectAdjustment):
        adjustment_id = uuid4()
        writer.execute(propose(consumer, adjustment_id=adjustment_id))
        writer.execute(decide(actor=SECOND_ADMIN, adjustment_id=adjustment_id))
    writer.execute(CreateInvite(actor=FIRST_ADMIN, code="WELCOME", amount_micro_usd=100))
    writer.execute(RedeemInvite(code="WELCOME", account_id=consumer))
    writer.execute(DeactivateInvite(actor=FIRST_ADMIN, code="WELCOME"))
    writer.execute(LockPeriod(actor=FIRST_ADMIN, period="2020-01"))
    writer.execute(ClosePeriod(actor=FIRST_ADMIN, period="2020-01", position=1, trial_balance_sha256="ab" * 32))


def stored(look: Connection, topic: str) -> StoredEvent:
    row = look.execute(
        "SELECT originator_id, originator_version, topic, state FROM events WHERE topic = %s LIMIT 1", (topic,)
    ).fetchone()
    assert row is not None
    return StoredEvent(*row)


def test_every_kind_of_event_is_stored_as_readable_json_with_its_version(
    writer: LedgerWriter, look: Connection
) -> None:
    write_one_of_each(writer)

    log = log_of(look)
    assert {event.topic for event in log} == {cls.TOPIC for cls in events.EVENT_CLASSES}
    for event in log:
        said = event.payload
        assert said["schema_version"] == CURRENT_VERSIONS[event.topic]
        assert said["originator_id"] == str(event.originator_id)
        assert said["originator_version"] == event.version
        assert said["actor"].keys() == {"kind", "id"}
        assert datetime.fromisoformat(said["occurred_at"]) == event.recorded_at


def test_the_log_holds_no_floats_and_no_other_numbers_than_integers(writer: LedgerWriter, look: Connection) -> None:
    write_one_of_each(writer)

    def refuse(number: str) -> None:
        raise AssertionError(f"a float in the log: {number}")

    for (state,) in look.execute("SELECT state FROM events"):
        json.loads(state, parse_float=refuse, parse_constant=refuse)


def test_postgresql_itself_can_read_what_is_stored(writer: LedgerWriter, look: Connection) -> None:
    write_one_of_each(writer)

    rows = look.execute(
        "SELECT topic, (convert_from(state, 'UTF8')::jsonb ->> 'schema_version')::int FROM events ORDER BY position"
    ).fetchall()

    assert len(rows) == len(log_of(look))
    assert all(version == CURRENT_VERSIONS[topic] for topic, version in rows)


def test_every_stored_event_reads_back_as_the_same_bytes(writer: LedgerWriter, look: Connection) -> None:
    write_one_of_each(writer)
    mapper = EventMapper()

    rows = look.execute("SELECT originator_id, originator_version, topic, state FROM events").fetchall()

    for row in rows:
        event = mapper.to_domain_event(StoredEvent(*row))
        assert mapper.to_stored_event(event) == StoredEvent(*row)


def test_events_say_who_caused_them_and_what_they_belong_to(writer: LedgerWriter, look: Connection) -> None:
    consumer, request_id = account(), uuid4()
    who = Actor("consumer", "key_7")
    writer.execute(grant(consumer, 10))

    writer.execute(msgspec.structs.replace(admit(consumer, 10, request_id), actor=who, correlation_id=str(request_id)))

    for event in log_of(look)[-2:]:
        assert event.payload["actor"] == {"kind": "consumer", "id": "key_7"}
        assert event.payload["correlation_id"] == str(request_id)
    belonging = [event.position for event in log_of(look) if event.payload["correlation_id"] == str(request_id)]
    assert belonging == [3, 4]


@pytest.mark.parametrize("changed", ["originator_id", "originator_version"])
def test_columns_that_disagree_with_the_payload_are_refused(
    writer: LedgerWriter, look: Connection, changed: str
) -> None:
    writer.execute(grant(account(), 10))
    row = stored(look, "Wallet.PromotionalCreditGranted")
    forged = (
        StoredEvent(uuid4(), row.originator_version, row.topic, row.state)
        if changed == "originator_id"
        else StoredEvent(row.originator_id, row.originator_version + 1, row.topic, row.state)
    )

    with pytest.raises(MismatchedEvent):
        EventMapper().to_domain_event(forged)


def test_a_payload_under_another_topic_is_refused(writer: LedgerWriter, look: Connection) -> None:
    writer.execute(grant(account(), 10))
    row = stored(look, "Wallet.PromotionalCreditGranted")

    with pytest.raises(UnreadableEvent):
        EventMapper().to_domain_event(row.__class__(row.originator_id, 1, "Wallet.HoldPlaced", row.state))


@pytest.mark.parametrize("topic", ["Wallet.FromTheFuture", "domain.wallet:Wallet", "os:system", ""])
def test_a_topic_that_is_not_registered_is_refused(topic: str) -> None:
    with pytest.raises(UnknownEvent):
        EventMapper().to_domain_event(StoredEvent(uuid4(), 1, topic, b"{}"))


def test_a_payload_of_a_later_version_is_refused(writer: LedgerWriter, look: Connection) -> None:
    writer.execute(grant(account(), 10))
    row = stored(look, "Wallet.PromotionalCreditGranted")
    later = row.state.replace(b'"schema_version":1', b'"schema_version":2')
    assert later != row.state

    with pytest.raises(UnknownEvent):
        EventMapper().to_domain_event(StoredEvent(row.originator_id, row.originator_version, row.topic, later))


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x04K\x01.", id="a pickle"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no version"),
        pytest.param(b'{"schema_version": 1}', id="no fields"),
        pytest.param(b'{"schema_version": "1"}', id="a version that is text"),
        pytest.param(b'{"schema_version": null}', id="a version that is null"),
    ],
)
def test_bytes_that_are_no_event_are_refused_by_name(state: bytes) -> None:
    with pytest.raises(UnreadableEvent):
        EventMapper().to_domain_event(StoredEvent(uuid4(), 1, "Wallet.HoldPlaced", state))


def test_the_log_cannot_hold_two_events_of_one_version(writer: LedgerWriter, look: Connection) -> None:
    writer.execute(grant(account(), 10))

    copied = "INSERT INTO events SELECT position + 100, originator_id, originator_version, topic, recorded_at, state"
    with pytest.raises(Exception, match="events_originator_id_originator_version_key"):
        look.execute(f"{copied} FROM events")


def test_ids_follow_from_business_keys_and_never_change(writer: LedgerWriter, look: Connection) -> None:
    """Another id for the same key would let a repeated command be done twice."""
    writer.execute(grant("acct_fixed", 10, "ref_fixed"))

    assert [event.originator_id for event in log_of(look)] == [
        uuid5(UUID("6f3f2f0e-5f0c-5b1a-9d3a-0a54d7a7f2b4"), "Wallet:acct_fixed"),
        uuid5(UUID("6f3f2f0e-5f0c-5b1a-9d3a-0a54d7a7f2b4"), "JournalEntry:credit:ref_fixed"),
    ]


def test_a_log_that_an_older_build_wrote_is_gone_on_with(writer: LedgerWriter, look: Connection) -> None:
    # Given a machine whose first event was stored as version 1
    machine = ProviderMachine.id_of("machine-id")
    state = (FOLDER / MachineRegistered.TOPIC / "v1.json").read_bytes()
    state = state.replace(b"00000000-0000-0000-0000-000000001234", str(machine).encode())
    with look.transaction():
        look.execute(
            "INSERT INTO events SELECT 1, %s, 1, %s, recorded_at, %s FROM ledger_head",
            (machine, MachineRegistered.TOPIC, state),
        )
        look.execute("UPDATE ledger_head SET position = 1")
    # When it comes back as it was, and then with other models
    facts: dict[str, Any] = {
        "machine_id": "machine-id",
        "gateway_id": "gateway",
        "provider_key": "provider-key",
        "hardware": {"chip_name": "Apple M4 Max", "memory_gb": 64},
    }
    writer.execute(OpenSession(**facts, session_id="one", models=("a/model", "b/model")))
    writer.execute(OpenSession(**facts, session_id="two", models=("a/model",)))
    # Then only the change is recorded, in the shape of today, and the old bytes stand as they were.
    log = log_of(look)
    assert [(event.name, event.payload["schema_version"], event.version) for event in log] == [
        ("MachineRegistered", 1, 1),
        ("ProviderSessionOpened", 1, 2),
        ("MachineRegistered", 2, 3),
        ("ProviderSessionOpened", 1, 4),
    ]
    assert look.execute("SELECT state FROM events WHERE position = 1").fetchone() == (state,)
    assert examine(look).healthy
