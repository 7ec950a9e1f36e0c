"""Snapshots: a long history is loaded from its end, and what is loaded is what all events say."""

from __future__ import annotations

import asyncio

import pytest

from adapters.postgres.mapper import EventMapper
from adapters.postgres.writer import SNAPSHOT_EVENTS, LedgerWriter
from domain import events
from domain.errors import LedgerUnavailable
from domain.ledger import Balance
from domain.wallet import Wallet
from tests.support.ledger_commands import account, admit, grant
from tests.support.ledger_waiting import Connection
from tests.support.ledger_writers import Sabotage, running

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The topics of the events that a writer reads back from the log, in their order."""
    topics: list[str] = []
    original = EventMapper.to_domain_event

    def listening(self: EventMapper, stored: object) -> object:
        topics.append(stored.topic)  # type: ignore[attr-defined]
        return original(self, stored)  # type: ignore[arg-type]

    monkeypatch.setattr(EventMapper, "to_domain_event", listening)
    return topics


def give(writer: LedgerWriter, consumer: str, times: int) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(writer.run(grant(consumer, 1)) for _ in range(times)))

    asyncio.run(all_of_them())


def snapshot_of(look: Connection, consumer: str) -> tuple[int, int, bytes] | None:
    return look.execute(
        "SELECT originator_version, class_version, state FROM snapshots WHERE originator_id = %s",
        (Wallet.id_of(consumer),),
    ).fetchone()


def folded(look: Connection, consumer: str, upto: int) -> Wallet:
    """The wallet as its events alone say, up to a version."""
    wallet = Wallet(Wallet.id_of(consumer))
    for topic, state in look.execute(
        "SELECT topic, state FROM events WHERE originator_id = %s AND originator_version <= %s "
        "ORDER BY originator_version",
        (wallet.id, upto),
    ):
        events.decode(topic, state).evolve(wallet)
    return wallet


def test_a_long_history_is_read_from_its_newest_snapshot(ledger: str, look: Connection, read: list[str]) -> None:
    # Given a wallet with a long history and open holds
    consumer = account()
    with running(ledger) as writer:
        give(writer, consumer, 2 * SNAPSHOT_EVENTS + 100)
        writer.execute(admit(consumer, 7))
    # When a new writer needs it
    read.clear()
    with running(ledger) as writer:
        balance = writer.execute(grant(consumer, 1))
    # Then it reads less than a snapshot's worth of events, and knows everything.
    assert balance == Balance(2 * SNAPSHOT_EVENTS + 100 + 1 - 7, 0)
    assert 0 < len([topic for topic in read if topic.startswith("Wallet.")]) < SNAPSHOT_EVENTS


def test_a_snapshot_is_exactly_what_its_events_say(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as writer:
        give(writer, consumer, 10)
        writer.execute(admit(consumer, 3))
        give(writer, consumer, SNAPSHOT_EVENTS)
    found = snapshot_of(look, consumer)
    assert found is not None
    version, class_version, state = found
    assert class_version == Wallet.SNAPSHOT_VERSION
    assert state == folded(look, consumer, version).state()


def test_a_snapshot_of_another_class_version_is_not_believed(ledger: str, look: Connection) -> None:
    # Given a snapshot whose content today's class would misread
    consumer = account()
    with running(ledger) as writer:
        give(writer, consumer, SNAPSHOT_EVENTS)
    look.execute("UPDATE snapshots SET class_version = class_version + 1, state = 'of another release'")
    # Then the events are read instead, and the next snapshot is this class's again.
    with running(ledger) as writer:
        assert writer.execute(grant(consumer, 1)) == Balance(SNAPSHOT_EVENTS + 1, 0)
    found = snapshot_of(look, consumer)
    assert found is not None
    assert found[:2] == (SNAPSHOT_EVENTS + 1, Wallet.SNAPSHOT_VERSION)


def test_losing_every_snapshot_loses_nothing(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as writer:
        give(writer, consumer, SNAPSHOT_EVENTS + 5)
    look.execute("DELETE FROM snapshots")
    with running(ledger) as writer:
        assert writer.execute(grant(consumer, 1)) == Balance(SNAPSHOT_EVENTS + 6, 0)


def test_a_batch_that_is_not_written_leaves_no_snapshot(ledger: str, look: Connection) -> None:
    # Given a wallet one event short of its snapshot, and a database that refuses the batch with the next one
    consumer, sabotage = account(), Sabotage()
    with running(ledger, sabotage) as writer:
        give(writer, consumer, SNAPSHOT_EVENTS - 1)
        before = snapshot_of(look, consumer)
        sabotage.next = "SELECT 1 / 0"
        with pytest.raises(LedgerUnavailable):
            writer.execute(grant(consumer, 1))
        assert snapshot_of(look, consumer) == before
        # Then the next one that is written counts from what is in the log.
        assert writer.execute(grant(consumer, 1)) == Balance(SNAPSHOT_EVENTS, 0)


def test_two_writers_take_up_each_others_snapshots(ledger: str, look: Connection) -> None:
    consumer = account()
    with running(ledger) as one, running(ledger, cache_max=0) as other:
        for turn in range(4):
            give(one if turn % 2 else other, consumer, SNAPSHOT_EVENTS // 2 + 1)
        assert one.execute(grant(consumer, 1)) == Balance(4 * (SNAPSHOT_EVENTS // 2 + 1) + 1, 0)
        assert other.execute(grant(consumer, 1)) == Balance(4 * (SNAPSHOT_EVENTS // 2 + 1) + 2, 0)
    assert snapshot_of(look, consumer) is not None
