from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from adapters.postgres.unit import AggregateCache, BatchUnit, NotLoaded
from domain.accounts import Account, AccountOpened
from domain.errors import Conflict, InvariantViolated
from domain.eventsourced import Actor, Ref, ref
from domain.ledger import Operation, Unit
from domain.wallet import HoldPlaced, PromotionalCreditGranted, Wallet
from tests.support.memory_ledger import BEGINNING


class Scripted(Operation[Any], frozen=True, kw_only=True):
    """A command that does what a test says."""

    script: Callable[[Unit], Any]
    actor: Actor = Actor("admin", "root")
    correlation_id: str = "operation"

    def needs(self) -> Sequence[Ref]:
        return ()

    def decide(self, unit: Unit) -> Any:
        return self.script(unit)


def credit(unit: Unit, amount: int, account: str = "ada") -> None:
    unit.record(
        unit.get(Wallet, account),
        PromotionalCreditGranted,
        account_id=account,
        amount=amount,
        source="test",
        reference="r",
    )


def hold(unit: Unit, amount: int, account: str = "ada") -> None:
    unit.record(
        unit.get(Wallet, account),
        HoldPlaced,
        account_id=account,
        hold_id="hold",
        amount=amount,
        expires_at=BEGINNING,
        purpose="inference",
    )


def blank(key: str) -> Wallet:
    return Wallet(Wallet.id_of(key))


def cache_with(*wallets: Wallet) -> AggregateCache:
    cache = AggregateCache(10)
    for wallet in wallets:
        cache.put(wallet)
    return cache


@pytest.fixture
def unit() -> BatchUnit:
    return BatchUnit(cache_with(blank("ada"), blank("ben")), BEGINNING)


def wallet(unit: BatchUnit, key: str = "ada") -> Wallet:
    return unit.get(Wallet, key)


class TestRecording:
    def test_an_event_is_applied_at_once_and_carries_the_commands_envelope(self, unit: BatchUnit) -> None:
        unit.run(Scripted(script=lambda unit: credit(unit, 5)))
        (event,) = unit.events
        assert (event.originator_id, event.originator_version, event.timestamp) == (Wallet.id_of("ada"), 1, BEGINNING)
        assert (event.actor, event.correlation_id) == (Actor("admin", "root"), "operation")
        assert (wallet(unit).promotional, wallet(unit).version) == (5, 1)

    def test_a_command_returns_its_own_answer(self, unit: BatchUnit) -> None:
        assert unit.run(Scripted(script=lambda _: "answer")) == "answer"
        assert unit.events == []

    def test_each_command_sees_what_those_before_it_recorded(self, unit: BatchUnit) -> None:
        unit.run(Scripted(script=lambda unit: credit(unit, 5)))
        unit.run(Scripted(script=lambda unit: credit(unit, 7)))
        assert [event.originator_version for event in unit.events] == [1, 2]
        assert unit.touched == {Wallet.id_of("ada").int: wallet(unit)}
        assert wallet(unit).promotional == 12

    def test_nothing_is_recorded_outside_of_a_command(self, unit: BatchUnit) -> None:
        with pytest.raises(AssertionError):
            credit(unit, 5)


class TestFailures:
    def test_a_failed_command_is_undone_and_its_neighbours_stay(self, unit: BatchUnit) -> None:
        def fail(unit: Unit) -> None:
            credit(unit, 100)
            credit(unit, 100, "ben")
            raise Conflict

        unit.run(Scripted(script=lambda unit: credit(unit, 5)))
        with pytest.raises(Conflict):
            unit.run(Scripted(script=fail))
        unit.run(Scripted(script=lambda unit: credit(unit, 7)))
        assert [event.originator_version for event in unit.events] == [1, 2]
        assert (wallet(unit).promotional, wallet(unit).version) == (12, 2)
        assert (wallet(unit, "ben").promotional, wallet(unit, "ben").version) == (0, 0)

    def test_what_only_a_failed_command_touched_counts_as_unchanged(self, unit: BatchUnit) -> None:
        def fail(unit: Unit) -> None:
            credit(unit, 100, "ben")
            raise Conflict

        with pytest.raises(Conflict):
            unit.run(Scripted(script=fail))
        assert unit.touched == {}
        assert wallet(unit, "ben").version == 0

    def test_a_hold_inside_of_a_failed_command_leaves_the_holds_alone(self, unit: BatchUnit) -> None:
        def fail(unit: Unit) -> None:
            hold(unit, 3)
            raise Conflict

        unit.run(Scripted(script=lambda unit: credit(unit, 5)))
        with pytest.raises(Conflict):
            unit.run(Scripted(script=fail))
        assert (wallet(unit).holds, wallet(unit).held, wallet(unit).balance) == ({}, 0, 5)

    def test_a_state_that_must_never_be_fails_the_command_that_made_it(self, unit: BatchUnit) -> None:
        unit.run(Scripted(script=lambda unit: credit(unit, 5)))
        with pytest.raises(InvariantViolated):
            unit.run(Scripted(script=lambda unit: hold(unit, 6)))
        assert (len(unit.events), wallet(unit).balance) == (1, 5)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_whatever_is_raised_the_command_is_undone(self, unit: BatchUnit, error: type[BaseException]) -> None:
        def fail(unit: Unit) -> None:
            credit(unit, 100)
            raise error

        with pytest.raises(error):
            unit.run(Scripted(script=fail))
        assert (unit.events, wallet(unit).promotional) == ([], 0)


class TestLoading:
    def test_a_command_that_touches_what_is_not_loaded_is_undone_and_says_what_it_needs(self, unit: BatchUnit) -> None:
        def touch(unit: Unit) -> None:
            credit(unit, 5)
            credit(unit, 5, "cyd")

        with pytest.raises(NotLoaded) as missing:
            unit.run(Scripted(script=touch))
        assert missing.value.ref == ref(Wallet, "cyd")
        assert (unit.events, wallet(unit).promotional) == ([], 0)

    def test_a_fresh_aggregate_is_not_looked_up(self, unit: BatchUnit) -> None:
        def open_account(unit: Unit) -> None:
            unit.record(unit.fresh(Account, "ada"), AccountOpened, account_id="ada", kind="user")

        unit.run(Scripted(script=open_account))
        assert unit.get(Account, "ada").version == 1
        assert unit.fresh(Account, "ada").version == 1

    def test_two_kinds_under_one_id_are_a_bug_that_stops(self) -> None:
        stranger = Account(Wallet.id_of("ada"))
        unit = BatchUnit(cache_with(), BEGINNING)
        unit._cache.put(stranger)
        with pytest.raises(AssertionError):
            unit.get(Wallet, "ada")
        with pytest.raises(AssertionError):
            unit.fresh(Wallet, "ada")


class TestCache:
    def test_the_aggregates_that_were_used_last_stay(self) -> None:
        cache = AggregateCache(2)
        ada, ben, cyd = blank("ada"), blank("ben"), blank("cyd")
        for one in (ada, ben, cyd):
            cache.put(one)
        assert cache.get(ada.id) is ada
        cache.shrink()
        assert [cache.get(one.id) for one in (ada, ben, cyd)] == [ada, None, cyd]

    def test_it_may_outgrow_its_bound_between_two_batches_only(self) -> None:
        cache = AggregateCache(1)
        wallets = [blank(str(number)) for number in range(5)]
        for one in wallets:
            cache.put(one)
        assert all(cache.get(one.id) is one for one in wallets)
        cache.shrink()
        assert [one for one in wallets if cache.get(one.id)] == wallets[-1:]

    def test_eviction_forgets_what_is_named_and_nothing_else(self) -> None:
        ada, ben = blank("ada"), blank("ben")
        cache = cache_with(ada, ben)
        cache.evict([ada, blank("nobody")])
        assert (cache.get(ada.id), cache.get(ben.id)) == (None, ben)
        cache.clear()
        assert cache.get(ben.id) is None
