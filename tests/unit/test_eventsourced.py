from __future__ import annotations

from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.accounts import Account, AccountOpened
from domain.eventsourced import Actor, Aggregate, Ref, Written, named_id, ref
from domain.journal import JournalEntry
from domain.machines import ProviderMachine
from domain.requests import InferenceRequest
from domain.wallet import PromotionalCreditGranted, Wallet
from tests.support.examples import REQUEST, record
from tests.support.memory_ledger import BEGINNING

KINDS: tuple[type[Aggregate], ...] = (Account, InferenceRequest, JournalEntry, ProviderMachine, Wallet)


def test_an_aggregates_id_follows_from_its_business_key_for_ever() -> None:
    # These stand in logs: another id would make every stored aggregate a stranger.
    assert Wallet.id_of("ada") == UUID("72ae7d67-d17b-575a-a1f2-21ba14fde718")
    assert InferenceRequest.id_of(str(REQUEST)) == UUID("be6b63fb-abbb-54f0-b789-658c179ad70e")


@given(st.uuids(), st.text(st.characters(exclude_categories=["Cs"])))
def test_the_id_of_a_name_is_the_library_s(namespace: UUID, name: str) -> None:
    assert named_id(namespace, name) == uuid5(namespace, name)


def test_two_kinds_with_the_same_key_have_different_ids() -> None:
    assert len({kind.id_of("ada") for kind in KINDS}) == len(KINDS)


def test_a_key_cannot_be_written_so_that_it_looks_like_another_kinds() -> None:
    # A colon inside of a key must not move the border between kind and key.
    assert Wallet.id_of("a:b") != Wallet.id_of("a")
    assert len({kind.KIND for kind in KINDS}) == len(KINDS)
    assert not any(":" in kind.KIND for kind in KINDS)


def test_a_reference_names_an_aggregate_before_it_is_loaded() -> None:
    assert ref(Wallet, "ada") == Ref(Wallet, Wallet.id_of("ada"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_aggregate_does_not_exist_until_its_first_event(kind: type[Aggregate]) -> None:
    blank = kind(kind.id_of("ada"))
    assert (blank.version, blank.exists, blank.modified_on) == (0, False, None)
    blank.check()


def test_an_event_carries_its_envelope() -> None:
    account = Account(Account.id_of("ada"))
    event = record(account, AccountOpened, account_id="ada", kind="user")
    assert (event.originator_id, event.originator_version, event.schema_version) == (account.id, 1, 1)
    assert (event.timestamp, event.actor, event.correlation_id) == (BEGINNING, Actor("system", "test"), "correlation")
    assert account.exists


def test_events_cannot_be_changed() -> None:
    event = record(Account(Account.id_of("ada")), AccountOpened, account_id="ada", kind="user")
    with pytest.raises(AttributeError):
        event.account_id = "ben"  # type: ignore[attr-defined]


def test_what_a_transaction_changed_is_found_by_kind() -> None:
    # Given a transaction that changed a wallet and an account,
    wallet, account = Wallet(Wallet.id_of("ada")), Account(Account.id_of("ada"))
    events = [
        record(account, AccountOpened, account_id="ada", kind="user"),
        record(wallet, PromotionalCreditGranted, account_id="ada", amount=1, source="s", reference="r"),
    ]
    written = Written(1, BEGINNING, events, {one.id: one for one in (wallet, account)})
    # then each is found among those of its kind.
    assert written.changed(Wallet) == [wallet]
    assert written.changed(Account) == [account]
    assert written.changed(InferenceRequest) == []
