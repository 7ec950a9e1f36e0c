"""What projections make of a page before any database is asked."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import events, journal
from domain.accounts import AccountOpened
from domain.eventsourced import DomainEvent
from domain.journal import JournalEntryPosted, Posting, credit, debit
from domain.machines import MachineLinked
from domain.requests import RequestAdmitted, RequestSettled
from domain.transparency import leaf
from domain.wallet import HoldPlaced, HoldReleased, Split
from projections.ledger_lines import movements_of
from projections.page import EventNotReadable, Page, Stored
from projections.projection import Projection
from projections.registry import INLINE, LAGGING, READ_MODELS, UnknownProjection, lagging, replaying
from projections.replay import lanes_of
from projections.sums import Sums, columns_of
from tests.support.event_fixtures import stored_events

RECORDED = leaf.microseconds_of(datetime(2026, 5, 1, 12, tzinfo=UTC))
STATES = {topic: state for topic, _, state in stored_events()}
"""The newest version of each topic, which comes last."""


def stored(*topics: str) -> list[Stored]:
    return [(position, RECORDED, topic, STATES[topic]) for position, topic in enumerate(topics, 1)]


# --- pages -----------------------------------------------------------------------------------------------------------


def test_a_page_gives_the_events_of_a_class_with_their_positions() -> None:
    page = Page(stored(HoldPlaced.TOPIC, MachineLinked.TOPIC, HoldPlaced.TOPIC))

    placed = page.of(HoldPlaced)

    assert [(position, recorded_at) for position, recorded_at, _ in placed] == [(1, RECORDED), (3, RECORDED)]
    assert placed[0][2] == events.decode(HoldPlaced.TOPIC, STATES[HoldPlaced.TOPIC])
    assert page.of(AccountOpened) == []


def test_events_of_several_classes_come_in_the_order_of_the_log() -> None:
    page = Page(stored(HoldReleased.TOPIC, HoldPlaced.TOPIC, AccountOpened.TOPIC, HoldReleased.TOPIC))

    assert [(position, type(event)) for position, _, event in page.of_any(HoldPlaced, HoldReleased)] == [
        (1, HoldReleased),
        (2, HoldPlaced),
        (4, HoldReleased),
    ]


def test_an_event_is_decoded_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = events.decode
    monkeypatch.setattr(events, "decode", lambda topic, state: (decoded.append(topic), decode(topic, state))[1])
    page = Page(stored(HoldPlaced.TOPIC, HoldReleased.TOPIC))

    for _ in range(3):
        assert page.of(HoldPlaced)

    assert decoded == [HoldPlaced.TOPIC]


def test_a_page_that_is_decoded_at_once_gives_the_same_and_an_event_that_cannot_be_read_stops_it() -> None:
    topics = (HoldPlaced.TOPIC, HoldReleased.TOPIC, HoldPlaced.TOPIC)
    asked, decoded = Page(stored(*topics)), Page(stored(*topics))

    decoded.decode()

    for kind in (HoldPlaced, HoldReleased, AccountOpened):
        assert decoded.of(kind) == asked.of(kind)
    with pytest.raises(EventNotReadable, match="position 2"):
        Page([*stored(HoldPlaced.TOPIC), (2, RECORDED, HoldReleased.TOPIC, b"{}")]).decode()


def test_every_one_that_asks_for_an_event_that_cannot_be_read_hears_of_it_and_nobody_else() -> None:
    damaged: list[Stored] = [*stored(HoldPlaced.TOPIC), (2, RECORDED, HoldReleased.TOPIC, b"{}")]
    page = Page(damaged)

    for _ in range(2):
        with pytest.raises(EventNotReadable, match=r"position 2 \(Wallet.HoldReleased\) cannot be read"):
            page.of(HoldReleased)
    assert len(page.of(HoldPlaced)) == 1


# --- sums ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9), st.integers(-9, 9))))
def test_sums_are_the_same_in_any_number_of_steps(amounts: list[tuple[str, int, int]]) -> None:
    sums: Sums[tuple[str]] = defaultdict(list)
    for key, first, second in amounts:
        sums[key,].append((first, second))

    columns = columns_of(sums) if sums else [[], [], []]

    keys = sorted({key for key, _, _ in amounts})
    assert columns == [
        keys,
        [sum(first for key, first, _ in amounts if key == wanted) for wanted in keys],
        [sum(second for key, _, second in amounts if key == wanted) for wanted in keys],
    ]


# --- the original's ledger -------------------------------------------------------------------------------------------


def entry(kind: str, postings: tuple[Posting, ...]) -> JournalEntryPosted:
    changes = {"kind": kind, "postings": postings}
    before = events.decode(JournalEntryPosted.TOPIC, STATES[JournalEntryPosted.TOPIC])
    fields: dict[str, Any] = {name: getattr(before, name) for name in before.__struct_fields__}
    return JournalEntryPosted(**(fields | changes))


def test_a_settlement_charges_the_consumer_once_and_pays_the_provider() -> None:
    postings = journal.settlement(
        consumer="ada",
        split=Split(promotional=30, provider=20),
        provider_account="bob",
        machine_id="m",
        provider_amount=45,
        platform_amount=5,
    )

    assert movements_of(entry("settlement", postings)) == [("ada", "charge", -50), ("bob", "payout", 45)]


def test_what_an_unlinked_machine_earns_is_no_account_s_movement() -> None:
    postings = journal.settlement(
        consumer="ada",
        split=Split(promotional=50),
        provider_account="",
        machine_id="m",
        provider_amount=50,
        platform_amount=0,
    )

    assert movements_of(entry("settlement", postings)) == [("ada", "charge", -50)]


def test_a_referrer_s_share_has_the_original_s_name_and_other_entries_keep_theirs() -> None:
    shared = (debit("2000", "ada", 10), credit("2100", "bob", 8), credit("2110", "cyd", 2))
    assert movements_of(entry("settlement", shared)) == [
        ("ada", "charge", -10),
        ("bob", "payout", 8),
        ("cyd", "referral_reward", 2),
    ]
    assert movements_of(entry("invite_credit", journal.promotional_credit("ada", 7))) == [("ada", "invite_credit", 7)]
    assert movements_of(entry("bank", (debit("1020", "", 5), credit("1010", "", 5)))) == []


def test_money_that_only_changes_its_bucket_is_no_movement() -> None:
    assert movements_of(entry("adjustment", (debit("2000", "ada", 5), credit("2005", "ada", 5)))) == []


# --- which there are, and how they run -------------------------------------------------------------------------------


def test_every_read_model_has_the_name_that_it_is_registered_under() -> None:
    assert [projection.name for projection in replaying()] == list(READ_MODELS)
    assert [projection.name for projection in lagging()] == list(LAGGING)
    assert not INLINE.keys() & LAGGING.keys()


def test_a_replay_of_some_has_only_those_and_an_unknown_name_is_refused_with_the_known_ones() -> None:
    assert [projection.name for projection in replaying(("usage_totals", "journal_lines"))] == [
        "journal_lines",
        "usage_totals",
    ]
    with pytest.raises(UnknownProjection, match="no read model 'chain'; there are earning_totals, hold_history, "):
        replaying(("chain",))


class Reads:
    only_adds = True

    def __init__(self, name: str, *kinds: type[DomainEvent]) -> None:
        self.name = name
        self.events = kinds

    def apply(self, *_: object) -> None: ...


def names(lanes: list[list[Projection]]) -> list[list[str]]:
    return [[projection.name for projection in lane] for lane in lanes]


def test_a_projection_runs_in_the_lane_of_the_aggregates_that_it_names_first() -> None:
    lanes = lanes_of([Reads("a", HoldPlaced), Reads("b", RequestSettled), Reads("c", HoldReleased, RequestAdmitted)])

    assert names(lanes) == [["a", "c"], ["b"]]


def test_every_projection_is_in_one_lane() -> None:
    lanes = names(lanes_of(replaying()))

    assert len(lanes) == 4
    assert sorted(name for lane in lanes for name in lane) == sorted(READ_MODELS)


def test_the_replay_of_the_balances_reads_everything_that_can_happen_to_a_wallet() -> None:
    (balances,) = replaying(("wallet_balances",))

    assert {event.TOPIC for event in balances.events} == {
        cls.TOPIC for cls in events.EVENT_CLASSES if cls.TOPIC.startswith("Wallet.")
    }
    assert len(balances.events) > 5
