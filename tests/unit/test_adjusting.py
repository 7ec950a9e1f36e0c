from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.adjusting import AdjustmentState, ApproveAdjustment, ProposeAdjustment, RejectAdjustment
from domain.adjustments import ADJUSTMENT_MICRO_USD_MAX, REASON_CODES, Adjustment
from domain.closing import ClosePeriod, LockPeriod
from domain.errors import Conflict, DarkbloomError, Forbidden, InvalidRequest, NotFound
from domain.eventsourced import Actor
from domain.journal import BUCKET_CODES, JournalEntryPosted
from domain.ledger import OpenAccount
from domain.periods import AuditPeriod, end_of, period_of
from domain.wallet import Wallet, WalletAdjusted
from tests.support.examples import admit, grant
from tests.support.memory_ledger import BEGINNING, MemoryLedger

ADA = Actor("admin", "key_ada")
BOB = Actor("admin", "key_bob")
ID = UUID("00000000-0000-4000-8000-00000000000a")


def propose(**changes: Any) -> ProposeAdjustment:
    values: dict[str, Any] = {
        "actor": ADA,
        "adjustment_id": ID,
        "account_id": "carol",
        "bucket": "promotional",
        "amount_micro_usd": 500,
        "reason": "promotion",
        "reference": "ticket 7",
    }
    return ProposeAdjustment(**{**values, **changes})


def approve(adjustment_id: UUID = ID, actor: Actor = BOB) -> ApproveAdjustment:
    return ApproveAdjustment(actor=actor, adjustment_id=adjustment_id)


def reject(adjustment_id: UUID = ID, actor: Actor = BOB) -> RejectAdjustment:
    return RejectAdjustment(actor=actor, adjustment_id=adjustment_id)


@pytest.fixture
def ledger() -> MemoryLedger:
    ledger = MemoryLedger()
    ledger.execute(OpenAccount(account_id="carol"))
    return ledger


class TestTwoPeople:
    def test_nothing_moves_before_another_admin_agrees(self, ledger: MemoryLedger) -> None:
        state = ledger.execute(propose())
        assert (state.status, state.decided_by, state.entry_id) == ("proposed", None, None)
        assert not [event for event in ledger.events if isinstance(event, WalletAdjusted | JournalEntryPosted)]

    def test_the_one_who_asked_cannot_agree(self, ledger: MemoryLedger) -> None:
        ledger.execute(propose())
        before = ledger.events
        with pytest.raises(Forbidden):
            ledger.execute(approve(actor=ADA))
        assert ledger.events == before

    def test_approval_writes_wallet_and_journal_in_one_transaction(self, ledger: MemoryLedger) -> None:
        ledger.execute(propose(effective_at=BEGINNING - timedelta(days=3), corrects_event_id=f"{ID}/4"))
        ledger.run(approve())
        written = ledger.commit().events

        assert [event.TOPIC.partition(".")[2] for event in written] == [
            "WalletAdjusted",
            "JournalEntryPosted",
            "AdjustmentApproved",
        ]
        adjusted, posted = written[:2]
        assert isinstance(adjusted, WalletAdjusted)
        assert isinstance(posted, JournalEntryPosted)
        assert (adjusted.proposed_by, adjusted.approved_by) == ("key_ada", "key_bob")
        assert adjusted.corrects_event_id == posted.metadata["corrects_event_id"] == f"{ID}/4"
        assert posted.entry_key == f"adjust:{ID}"
        assert posted.effective_at == BEGINNING - timedelta(days=3)
        assert ledger.state_of(Wallet, "carol").promotional == 500

    def test_approving_again_returns_the_first_result(self, ledger: MemoryLedger) -> None:
        ledger.execute(propose())
        first = ledger.execute(approve())
        before = ledger.events
        assert ledger.execute(approve()) == first
        assert ledger.execute(approve(actor=Actor("admin", "key_eve"))) == first
        assert ledger.events == before
        assert first.decided_by == BOB

    def test_rejecting_again_returns_the_first_result(self, ledger: MemoryLedger) -> None:
        ledger.execute(propose())
        first = ledger.execute(reject(actor=ADA))
        before = ledger.events
        assert ledger.execute(reject()) == first
        assert (first.status, first.decided_by, first.entry_id) == ("rejected", ADA, None)
        assert ledger.events == before

    def test_a_decision_stands(self, ledger: MemoryLedger) -> None:
        other = uuid4()
        ledger.execute(propose())
        ledger.execute(propose(adjustment_id=other))
        ledger.execute(reject())
        ledger.execute(approve(other))
        with pytest.raises(Conflict):
            ledger.execute(approve())
        with pytest.raises(Conflict):
            ledger.execute(reject(other))

    def test_what_was_never_proposed_cannot_be_decided(self, ledger: MemoryLedger) -> None:
        for command in (approve(), reject()):
            with pytest.raises(NotFound):
                ledger.execute(command)


class TestProposals:
    def test_the_same_proposal_is_made_once(self, ledger: MemoryLedger) -> None:
        first = ledger.execute(propose())
        before = ledger.events
        assert ledger.execute(propose()) == first
        assert ledger.events == before

    @pytest.mark.parametrize(
        "change",
        [
            {"account_id": "dave"},
            {"bucket": "reward"},
            {"amount_micro_usd": 501},
            {"reason": "loss"},
            {"reference": "ticket 8"},
            {"note": "different"},
            {"effective_at": BEGINNING - timedelta(days=1)},
            {"corrects_event_id": f"{ID}/1"},
        ],
    )
    def test_an_id_is_not_used_for_something_else(self, ledger: MemoryLedger, change: dict[str, Any]) -> None:
        ledger.execute(propose())
        with pytest.raises(Conflict):
            ledger.execute(propose(**change))

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"bucket": "savings"}, "bucket"),
            ({"reason": "because"}, "reason"),
            ({"amount_micro_usd": 0}, "amount"),
            ({"amount_micro_usd": ADJUSTMENT_MICRO_USD_MAX + 1}, "amount"),
            ({"amount_micro_usd": -ADJUSTMENT_MICRO_USD_MAX - 1}, "amount"),
            ({"reference": "  "}, "reference"),
            ({"reference": "x" * 201}, "reference"),
            ({"note": "x" * 501}, "note"),
            ({"corrects_event_id": "17"}, "corrects_event_id"),
            ({"effective_at": datetime(2100, 1, 1, tzinfo=UTC)}, "effective_at"),
        ],
    )
    def test_a_wrong_member_is_refused_by_name(self, ledger: MemoryLedger, change: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            ledger.execute(propose(**change))
        assert refused.value.param == param

    def test_an_account_that_nobody_opened_is_not_adjusted(self, ledger: MemoryLedger) -> None:
        with pytest.raises(NotFound):
            ledger.execute(propose(account_id="carrol"))


class TestCover:
    def test_no_bucket_goes_below_zero(self, ledger: MemoryLedger) -> None:
        ledger.execute(grant("carol", 100))
        ledger.execute(propose(amount_micro_usd=-101))
        with pytest.raises(Conflict, match=r"holds 0\.000100 USD"):
            ledger.execute(approve())
        ledger.execute(grant("carol", 1, "second"))
        ledger.execute(approve())
        assert ledger.state_of(Wallet, "carol").balance == 0

    def test_an_open_hold_keeps_its_cover(self, ledger: MemoryLedger) -> None:
        ledger.execute(grant("carol", 1_000))
        held = admit("carol", prompt=400, output=300)
        ledger.execute(held)
        ledger.execute(propose(amount_micro_usd=-301))
        with pytest.raises(Conflict, match="Open holds"):
            ledger.execute(approve())

    @given(
        start=st.integers(0, 1_000),
        steps=st.lists(
            st.tuples(
                st.sampled_from(list(BUCKET_CODES)),
                st.integers(-1_000, 1_000),
                st.sampled_from(list(REASON_CODES)),
                st.sampled_from((ADA, BOB)),
                st.booleans(),
            ),
            max_size=12,
        ),
    )
    def test_whatever_is_adjusted_wallets_and_journal_agree(
        self, start: int, steps: list[tuple[str, int, str, Actor, bool]]
    ) -> None:
        ledger = MemoryLedger(cache_max=2)
        ledger.execute(OpenAccount(account_id="carol"))
        if start:
            ledger.execute(grant("carol", start))
        if start >= 200:
            ledger.execute(admit("carol", prompt=100, output=100))
        expected = Counter({"promotional": start})
        held = 200 if start >= 200 else 0
        for bucket, amount, reason, approver, twice in steps:
            adjustment_id = uuid4()
            try:
                ledger.execute(
                    propose(adjustment_id=adjustment_id, bucket=bucket, amount_micro_usd=amount, reason=reason)
                )
                for _ in range(2 if twice else 1):
                    ledger.execute(approve(adjustment_id, approver))
            except DarkbloomError:
                covered = expected[bucket] + amount >= 0 and expected.total() + amount >= held
                assert amount == 0 or approver == ADA or not covered
                continue
            assert approver == BOB
            expected[bucket] += amount

        wallet = ledger.state_of(Wallet, "carol")
        wallet.check()
        journal: Counter[str] = Counter()
        for event in ledger.events:
            if isinstance(event, JournalEntryPosted):
                assert sum(posting.signed for posting in event.postings) == 0
                assert all(posting.amount > 0 for posting in event.postings)
                for posting in event.postings:
                    if posting.sub_account == "carol":
                        journal[posting.account_code] -= posting.signed
        for bucket, code in BUCKET_CODES.items():
            assert getattr(wallet, bucket) == expected[bucket] == journal[code] >= 0
        assert wallet.balance >= 0
        assert 0 <= wallet.withdrawable <= wallet.balance


class TestPeriods:
    @pytest.mark.parametrize(
        ("period", "end"),
        [
            ("2026-04", datetime(2026, 4, 30, 23, 59, 59, 999_999, tzinfo=UTC)),
            ("2026-12", datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
            ("2028-02", datetime(2028, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)),
        ],
    )
    def test_a_period_ends_with_the_last_microsecond_of_its_month(self, period: str, end: datetime) -> None:
        assert end_of(period) == end
        assert period_of(end) == period
        assert period_of(end + timedelta(microseconds=1)) != period

    @pytest.mark.parametrize("period", ["", "2026", "2026-00", "2026-13", "26-05", "2026-5", "1999-01", "2026-05-01"])
    def test_what_is_no_month_is_refused(self, ledger: MemoryLedger, period: str) -> None:
        with pytest.raises(InvalidRequest):
            ledger.execute(LockPeriod(actor=ADA, period=period))

    def test_a_period_that_is_not_over_cannot_be_closed(self, ledger: MemoryLedger) -> None:
        with pytest.raises(Conflict, match="not over"):
            ledger.execute(LockPeriod(actor=ADA, period=period_of(BEGINNING)))

    def test_a_period_is_only_closed_once_everything_in_it_is_recorded(self, ledger: MemoryLedger) -> None:
        ledger.now = end_of("2026-05") + timedelta(seconds=118)
        ledger.lose_commit()  # the next batch is a second later
        with pytest.raises(Conflict):
            ledger.execute(LockPeriod(actor=ADA, period="2026-05"))
        ledger.lose_commit()
        assert ledger.execute(LockPeriod(actor=ADA, period="2026-05")) is None

    def test_closing_twice_gives_the_first_result(self, ledger: MemoryLedger) -> None:
        first = close(ledger, position=3, digest="aa")
        assert ledger.execute(LockPeriod(actor=BOB, period="2026-04")) == first
        before = ledger.events
        assert close(ledger, position=9, digest="bb") == first
        assert ledger.events == before
        assert (first.position, first.trial_balance_sha256) == (3, "aa")

    def test_a_period_is_not_closed_without_its_lock(self, ledger: MemoryLedger) -> None:
        with pytest.raises(Conflict):
            ledger.execute(ClosePeriod(actor=ADA, period="2026-04", position=1, trial_balance_sha256=""))

    def test_nothing_is_dated_into_a_locked_period(self, ledger: MemoryLedger) -> None:
        inside = end_of("2026-04")
        ledger.execute(propose(effective_at=inside))
        ledger.execute(LockPeriod(actor=ADA, period="2026-04"))
        before = ledger.events

        with pytest.raises(Conflict, match="2026-04 is closed"):
            ledger.execute(approve())
        with pytest.raises(Conflict, match="2026-04 is closed"):
            ledger.execute(propose(adjustment_id=uuid4(), effective_at=inside))
        assert ledger.events == before

        other = uuid4()
        ledger.execute(propose(adjustment_id=other, effective_at=inside + timedelta(microseconds=1)))
        assert ledger.execute(approve(other)).status == "approved"


def close(ledger: MemoryLedger, *, position: int, digest: str) -> Any:
    ledger.execute(LockPeriod(actor=ADA, period="2026-04"))
    return ledger.execute(ClosePeriod(actor=ADA, period="2026-04", position=position, trial_balance_sha256=digest))


def test_aggregates_are_found_by_their_business_keys() -> None:
    assert Adjustment.id_of(str(ID)) == Adjustment.id_of(str(UUID(str(ID).upper())))
    assert AuditPeriod.id_of("2026-04") != AuditPeriod.id_of("2026-05")


def test_a_state_is_of_something_that_was_proposed() -> None:
    with pytest.raises(NotFound):
        AdjustmentState.of(Adjustment(Adjustment.id_of(str(ID))))


@pytest.mark.parametrize(
    "moment", [BEGINNING.replace(tzinfo=None), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))]
)
def test_a_time_that_cannot_be_placed_is_refused_and_stops_nobody_else(ledger: MemoryLedger, moment: datetime) -> None:
    ledger.run(grant("carol", 5))
    with pytest.raises(InvalidRequest):
        ledger.run(propose(effective_at=moment))
    ledger.commit()
    assert ledger.state_of(Wallet, "carol").balance == 5


@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "a\ud800b", "\x1b[2J"])
def test_what_cannot_be_printed_is_kept_out_of_the_log(ledger: MemoryLedger, text: str) -> None:
    for change in ({"reference": text}, {"note": text}):
        with pytest.raises(InvalidRequest):
            ledger.execute(propose(**change))
    ledger.execute(propose())
    with pytest.raises(InvalidRequest):
        ledger.execute(RejectAdjustment(actor=BOB, adjustment_id=ID, note=text))
