from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvariantViolated
from domain.wallet import (
    BUCKETS,
    EARNING_BUCKETS,
    EarningCredited,
    HoldCaptured,
    HoldPlaced,
    HoldReleased,
    PromotionalCreditGranted,
    Split,
    Wallet,
)
from tests.support.examples import record
from tests.support.memory_ledger import BEGINNING

amounts = st.integers(0, 10**12)
buckets = st.fixed_dictionaries(dict.fromkeys(BUCKETS, amounts))


def wallet_with(**amounts: int) -> Wallet:
    wallet = Wallet(Wallet.id_of("ada"))
    for bucket, amount in amounts.items():
        setattr(wallet, bucket, amount)
    return wallet


def hold(wallet: Wallet, amount: int, hold_id: str = "hold") -> None:
    record(
        wallet,
        HoldPlaced,
        account_id="ada",
        hold_id=hold_id,
        amount=amount,
        expires_at=BEGINNING + timedelta(hours=1),
        purpose="inference",
    )


def capture(wallet: Wallet, amount: int, hold_id: str = "hold") -> None:
    record(
        wallet,
        HoldCaptured,
        account_id="ada",
        hold_id=hold_id,
        captured=amount,
        released=wallet.holds[hold_id] - amount,
        split=wallet.split_of(amount),
    )


def spend(wallet: Wallet, amount: int) -> None:
    hold(wallet, amount)
    capture(wallet, amount)


def visible(wallet: Wallet) -> tuple[int, int]:
    return wallet.balance, wallet.withdrawable


class TestWhatIsSpentFirst:
    def test_the_example_of_the_specification(self) -> None:
        # Given 20 that were bought and 30 that were earned,
        wallet = wallet_with(purchased=20, provider=30)
        assert visible(wallet) == (50, 30)
        # when 15 are spent, what was earned stays whole;
        spend(wallet, 15)
        assert visible(wallet) == (35, 30)
        # when 10 more are spent, the last 5 that were bought go, and 5 that were earned.
        spend(wallet, 10)
        assert visible(wallet) == (25, 25)

    def test_each_bucket_is_emptied_before_the_next_is_touched(self) -> None:
        wallet = wallet_with(promotional=1, purchased=2, reward=3, referral=4, provider=5)
        assert wallet.split_of(0) == Split()
        assert wallet.split_of(2) == Split(promotional=1, purchased=1)
        assert wallet.split_of(7) == Split(promotional=1, purchased=2, reward=3, referral=1)
        assert wallet.split_of(15) == Split(promotional=1, purchased=2, reward=3, referral=4, provider=5)

    @given(buckets, st.data())
    def test_a_split_is_exact_and_keeps_the_order(self, held: dict[str, int], data: st.DataObject) -> None:
        wallet = wallet_with(**held)
        amount = data.draw(st.integers(0, sum(held.values())))
        split = wallet.split_of(amount)
        taken = [getattr(split, bucket) for bucket in BUCKETS]
        assert split.total == sum(taken) == amount
        for position, bucket in enumerate(BUCKETS):
            assert 0 <= taken[position] <= held[bucket]
            if taken[position] < held[bucket]:
                assert not any(taken[position + 1 :])

    def test_more_than_everything_cannot_be_split(self) -> None:
        with pytest.raises(InvariantViolated):
            wallet_with(promotional=1, provider=1).split_of(3)

    def test_a_stored_split_leaves_empty_buckets_out(self) -> None:
        assert msgspec.json.encode(Split(promotional=3, provider=4)) == b'{"promotional":3,"provider":4}'
        assert msgspec.json.decode(b"{}", type=Split) == Split()


class TestHolds:
    def test_a_hold_takes_from_the_balance_and_posts_nothing(self) -> None:
        wallet = wallet_with(promotional=100)
        hold(wallet, 60)
        assert visible(wallet) == (40, 0)
        assert (wallet.promotional, wallet.holds, wallet.held) == (100, {"hold": 60}, 60)

    def test_a_released_hold_returns_exactly_what_was_seen_before(self) -> None:
        wallet = wallet_with(promotional=10, provider=30)
        before = visible(wallet)
        hold(wallet, 35)
        assert visible(wallet) == (5, 5)
        record(wallet, HoldReleased, account_id="ada", hold_id="hold", released=35, reason="cancelled")
        assert visible(wallet) == before
        assert (wallet.holds, wallet.held) == ({}, 0)

    def test_an_earner_does_not_lose_what_was_held_and_not_used(self) -> None:
        # Given 10 of credit and 30 earned, with 35 held, when only 4 of them are used,
        wallet = wallet_with(promotional=10, provider=30)
        hold(wallet, 35)
        capture(wallet, 4)
        # then everything that was earned can still be withdrawn.
        assert visible(wallet) == (36, 30)

    @given(buckets, st.lists(st.integers(0, 10**11), max_size=5))
    def test_balance_and_withdrawable_follow_the_two_formulae(self, held: dict[str, int], holds: list[int]) -> None:
        wallet = wallet_with(**held)
        for number, amount in enumerate(holds):
            hold(wallet, amount, str(number))
        credit = held["promotional"] + held["purchased"]
        earned = held["reward"] + held["referral"] + held["provider"]
        assert wallet.balance == credit + earned - sum(holds)
        assert wallet.withdrawable == earned - max(0, sum(holds) - credit)

    @given(buckets, st.data())
    def test_affordable_holds_keep_both_numbers_above_zero(self, held: dict[str, int], data: st.DataObject) -> None:
        wallet = wallet_with(**held)
        for number in range(data.draw(st.integers(0, 4))):
            hold(wallet, data.draw(st.integers(0, wallet.balance)), str(number))
            wallet.check()
        assert 0 <= wallet.withdrawable <= wallet.balance

    @given(buckets, st.data())
    def test_any_affordable_hold_can_be_captured_in_part(self, held: dict[str, int], data: st.DataObject) -> None:
        wallet = wallet_with(**held)
        total = wallet.balance
        amount = data.draw(st.integers(0, total))
        hold(wallet, amount)
        captured = data.draw(st.integers(0, amount))
        capture(wallet, captured)
        wallet.check()
        assert (wallet.balance, wallet.held) == (total - captured, 0)

    def test_several_holds_stand_beside_each_other(self) -> None:
        wallet = wallet_with(promotional=100)
        hold(wallet, 30, "one")
        hold(wallet, 40, "two")
        assert (wallet.balance, wallet.held) == (30, 70)
        capture(wallet, 10, "one")
        assert (wallet.balance, wallet.held, wallet.holds) == (50, 40, {"two": 40})


class TestWhatComesIn:
    def test_a_credit_is_spendable_and_not_withdrawable(self) -> None:
        wallet = wallet_with()
        record(wallet, PromotionalCreditGranted, account_id="ada", amount=7, source="admin_credit", reference="r")
        assert (visible(wallet), wallet.promotional, wallet.account_id) == ((7, 0), 7, "ada")

    @pytest.mark.parametrize(("kind", "bucket"), EARNING_BUCKETS.items())
    def test_an_earning_is_withdrawable_and_lands_in_the_bucket_of_its_kind(self, kind: str, bucket: str) -> None:
        wallet = wallet_with()
        record(wallet, EarningCredited, account_id="ada", amount=7, kind=kind, reference="job")
        assert (visible(wallet), getattr(wallet, bucket)) == ((7, 7), 7)


class TestSafety:
    @pytest.mark.parametrize("bucket", [*BUCKETS, "held"])
    def test_a_bucket_below_zero_stops_everything(self, bucket: str) -> None:
        wallet = wallet_with(promotional=100, provider=100)
        setattr(wallet, bucket, -1)
        with pytest.raises(InvariantViolated):
            wallet.check()

    def test_holding_more_than_there_is_stops_everything(self) -> None:
        wallet = wallet_with(promotional=5)
        hold(wallet, 6)
        with pytest.raises(InvariantViolated):
            wallet.check()

    def test_a_copy_is_not_reached_by_later_events(self) -> None:
        wallet = wallet_with(promotional=100)
        hold(wallet, 10, "one")
        twin = wallet.copy()
        hold(wallet, 20, "two")
        capture(wallet, 5, "one")
        assert (twin.holds, twin.held, twin.version, twin.promotional) == ({"one": 10}, 10, 1, 100)
