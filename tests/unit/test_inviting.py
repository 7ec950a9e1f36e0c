"""Invite codes: however many redeem at once, no code is used more often than it allows, and the books stay balanced."""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import Conflict, InvalidRequest, NotFound
from domain.invariants import BatchCheck, LogCheck, Logged, Violation
from domain.invites import AMOUNT_MICRO_USD_MAX, USES_MAX, InviteCode, InviteCodeRedeemed
from domain.inviting import CreateInvite, DeactivateInvite, RedeemInvite, normalised
from domain.journal import JournalEntryPosted
from domain.wallet import Wallet
from tests.support.ledger_commands import admit, dispatch, settle
from tests.support.memory_ledger import BEGINNING, MemoryLedger, reread

CODE = "INV-0A1B2C3D"


def create(ledger: MemoryLedger, **changes: Any) -> None:
    ledger.execute(CreateInvite(**{"code": CODE, "amount_micro_usd": 5_000_000} | changes))


def redeem(account_id: str, code: str = CODE) -> RedeemInvite:
    return RedeemInvite(code=code, account_id=account_id)


def test_the_credit_can_be_spent_and_not_withdrawn() -> None:
    ledger = MemoryLedger()
    create(ledger)
    amount, balance = ledger.execute(redeem("ada"))
    assert (amount, balance.balance_micro_usd, balance.withdrawable_micro_usd) == (5_000_000, 5_000_000, 0)
    assert ledger.state_of(Wallet, "ada").promotional == 5_000_000
    (entry,) = [event for event in ledger.events if isinstance(event, JournalEntryPosted)]
    assert (entry.entry_key, entry.kind, entry.reference) == (f"invite:{CODE}:ada", "invite_credit", f"invite:{CODE}")
    assert [(line.account_code, line.sub_account, line.signed) for line in entry.postings] == [
        ("5000", "", 5_000_000),
        ("2005", "ada", -5_000_000),
    ]


def test_it_is_spent_before_what_was_paid_for() -> None:
    ledger = MemoryLedger()
    create(ledger, amount_micro_usd=300)
    ledger.execute(redeem("ada"))
    admission = admit("ada", 300)
    for command in (
        admission,
        dispatch(admission.request_id, provider="ben"),
        settle("ada", admission.request_id, 200),
    ):
        ledger.execute(command)
    assert (ledger.state_of(Wallet, "ada").promotional, ledger.state_of(Wallet, "ben").withdrawable) == (100, 200)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"amount_micro_usd": 0}, InvalidRequest),
        ({"amount_micro_usd": -5}, InvalidRequest),
        ({"amount_micro_usd": AMOUNT_MICRO_USD_MAX + 1}, InvalidRequest),
        ({"max_uses": 0}, InvalidRequest),
        ({"max_uses": USES_MAX + 1}, InvalidRequest),
        ({"expires_at": BEGINNING}, InvalidRequest),
    ],
)
def test_a_code_that_cannot_be_is_not_made(changes: dict[str, Any], error: type[Exception]) -> None:
    ledger = MemoryLedger()
    with pytest.raises(error):
        create(ledger, **changes)
    assert ledger.events == []


def test_a_code_is_made_once_also_after_its_end() -> None:
    ledger = MemoryLedger()
    create(ledger)
    ledger.execute(DeactivateInvite(code=CODE))
    with pytest.raises(Conflict):
        create(ledger)


def test_who_may_not_redeem_is_told_why_and_nothing_is_recorded() -> None:
    ledger = MemoryLedger()
    create(ledger)
    create(ledger, code="PAST", expires_at=ledger.now + timedelta(seconds=3))
    create(ledger, code="ENDED")
    ledger.execute(DeactivateInvite(code="ENDED"))
    ledger.execute(redeem("ada"))
    ledger.now += timedelta(hours=1)
    ledger.lose_commit()  # so that the next batch has the new time
    before = len(ledger.events)
    for account_id, code, error, word in (
        ("ada", CODE, InvalidRequest, "already"),
        ("ben", CODE, InvalidRequest, "used up"),
        ("ben", "PAST", InvalidRequest, "not valid"),
        ("ben", "ENDED", InvalidRequest, "not valid"),
        ("ben", "NONE", NotFound, "no invite code"),
    ):
        with pytest.raises(error, match=word):
            ledger.execute(redeem(account_id, code))
    assert len(ledger.events) == before
    with pytest.raises(NotFound):
        ledger.execute(DeactivateInvite(code="NONE"))


def test_ending_a_code_twice_changes_nothing() -> None:
    ledger = MemoryLedger()
    create(ledger)
    ledger.execute(DeactivateInvite(code=CODE))
    before = len(ledger.events)
    ledger.execute(DeactivateInvite(code=CODE))
    assert len(ledger.events) == before


@pytest.mark.parametrize(("typed", "code"), [(" spring-26 ", "SPRING-26"), ("inv_0a1b", "INV_0A1B")])
def test_a_code_may_be_typed_in_any_case(typed: str, code: str) -> None:
    assert normalised(typed) == code


@pytest.mark.parametrize("typed", ["", "abc", "a b c d", "x" * 41, "-abc", "ab:cd", "åbcd", "ab\ncd"])
def test_what_is_no_code_is_refused(typed: str) -> None:
    with pytest.raises(InvalidRequest):
        normalised(typed)


def test_a_snapshot_knows_who_used_the_code() -> None:
    ledger = MemoryLedger()
    create(ledger, max_uses=3, expires_at=BEGINNING + timedelta(days=1))
    for account_id in ("ben", "ada"):
        ledger.execute(redeem(account_id))
    whole = ledger.state_of(InviteCode, CODE)
    restored = InviteCode(whole.id)
    restored.restore(whole.state())
    told = ("code", "amount", "max_uses", "expires_at", "is_active", "accounts")
    assert [getattr(restored, name) for name in told] == [getattr(whole, name) for name in told]
    assert restored.state() == whole.state()


@settings(max_examples=60)
@given(
    codes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 10_000)), min_size=1, max_size=3),
    deeds=st.lists(
        st.tuples(st.sampled_from(("redeem", "redeem", "redeem", "end")), st.integers(0, 2), st.integers(0, 5)),
        max_size=60,
    ),
    batch=st.integers(1, 20),
    cache_max=st.sampled_from((1, 1_000)),
)
def test_no_code_is_used_more_often_than_it_allows_nor_twice_by_an_account(
    codes: list[tuple[int, int]], deeds: list[tuple[str, int, int]], batch: int, cache_max: int
) -> None:
    ledger, check, violations = MemoryLedger(cache_max=cache_max), BatchCheck(), list[Violation]()
    log = LogCheck(violations.append)

    def commit() -> None:
        written = ledger.commit()
        check.check(written)
        for position, event in enumerate(reread(written.events), written.first_position):
            log.read(Logged(position, written.recorded_at, event))

    for number, (max_uses, amount) in enumerate(codes):
        ledger.run(CreateInvite(code=f"CODE-{number}", amount_micro_usd=amount, max_uses=max_uses))
    for done, (deed, number, account) in enumerate(deeds, 1):
        code = f"CODE-{number % len(codes)}"
        with contextlib.suppress(InvalidRequest):
            ledger.run(DeactivateInvite(code=code) if deed == "end" else redeem(f"acct-{account}", code))
        if done % batch == 0:
            commit()
    commit()
    log.close()

    assert violations == []
    uses = Counter[str]()
    credit = Counter[str]()
    for event in ledger.events:
        if isinstance(event, InviteCodeRedeemed):
            uses[event.code] += 1
            credit[event.account_id] += event.amount
    assert all(uses[f"CODE-{number}"] <= max_uses for number, (max_uses, _) in enumerate(codes))
    for account_id, amount in credit.items():
        wallet = ledger.state_of(Wallet, account_id)
        assert (wallet.balance, wallet.withdrawable) == (amount, 0)
