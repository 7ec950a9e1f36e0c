"""The invariants of the books as folds: sound histories pass, and whatever is changed in one is found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import events
from domain.errors import DarkbloomError, InvariantViolated
from domain.eventsourced import DomainEvent, Written
from domain.invariants import INVARIANTS, BatchCheck, LogCheck, Logged, TransactionCheck, UsageTotals, Violation
from domain.invariants import batch as batch_module
from domain.journal import JournalEntryPosted
from domain.requests import JobCompleted, RequestAdmitted, RequestReleased, RequestSettled
from domain.wallet import (
    EarningCredited,
    HoldCaptured,
    HoldPlaced,
    HoldReleased,
    PromotionalCreditGranted,
    Wallet,
    WalletAdjusted,
)
from tests.support.auditor import Auditor
from tests.support.broken_builds import IN_THE_LOG, IN_THE_READ_MODELS, Breakage
from tests.support.busy_day import commands_of
from tests.support.memory_ledger import MemoryLedger, reread

APPLICABLE = {invariant.number for invariant in INVARIANTS if invariant.applies}
OF_THE_LOG = tuple(sorted(APPLICABLE - {12, 13}))
"""The invariants that a log alone can break; 12 and 13 are about tables."""

REFUSALS = (DarkbloomError, ValueError, KeyError)

seeds = st.integers(0, 2**32)


def written_by(seed: int, rounds: int, batch: int) -> Iterator[Written]:
    """What a day of business appends, in batches of so many commands, each as it stands before its commit."""
    ledger = MemoryLedger()
    for number, command in enumerate(commands_of(seed, rounds), 1):
        try:
            ledger.run(command)
        except REFUSALS:
            continue
        if number % batch == 0:
            yield ledger.commit()
    yield ledger.commit()


def log_of(seed: int, rounds: int = 12, batch: int = 3) -> list[Logged]:
    logged: list[Logged] = []
    for written in written_by(seed, rounds, batch):
        for position, event in enumerate(reread(written.events), written.first_position):
            logged.append(Logged(position, written.recorded_at, event))
    return logged


def examined(log: list[Logged], **options: Any) -> list[Violation]:
    found: list[Violation] = []
    check = LogCheck(found.append, **options)
    for logged in log:
        check.read(logged)
    check.close()
    return found


def check_all(batches: Iterable[Written]) -> None:
    """As a writer does, with one check for all its batches."""
    check = BatchCheck()
    for written in batches:
        check.check(written)


# --- what is sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", OF_THE_LOG)
@given(seed=seeds, batch=st.integers(1, 40))
@settings(max_examples=15)
def test_no_history_of_commands_breaks_the_invariant(number: int, seed: int, batch: int) -> None:
    assert [found for found in examined(log_of(seed, 20, batch)) if found.invariant == number] == []


@given(seed=seeds, batch=st.integers(1, 40))
@settings(max_examples=40)
def test_the_check_before_each_commit_lets_every_sound_batch_through(seed: int, batch: int) -> None:
    check_all(written_by(seed, 20, batch))


@given(seed=seeds, cut=st.floats(0, 1))
@settings(max_examples=40)
def test_the_newest_part_of_a_sound_log_is_sound_wherever_it_begins(seed: int, cut: float) -> None:
    log = log_of(seed, 20)
    begin = int(cut * len(log))
    assert examined(log[begin:], after_position=begin, whole=False) == []


@given(seed=seeds)
@settings(max_examples=20)
def test_two_auditors_who_share_no_code_agree(seed: int) -> None:
    log = log_of(seed, 20)
    auditor, check, usage = Auditor(), LogCheck(lambda _: None), UsageTotals()
    auditor.read(logged.event for logged in log)
    for logged in log:
        check.read(logged)
        usage.read(logged)
    assert {account: (fold.balance, fold.withdrawable) for account, fold in check.wallets.items()} == {
        account: auditor.balance(account) for account in check.wallets
    }
    assert {event.request_id for event in check.open_requests.values()} == auditor.admissions.keys() - auditor.ends
    assert {account: (row[0], row[3]) for account, row in usage.rows.items()} == auditor.usage_by_account()


# --- what is changed is found ----------------------------------------------------------------------------------------

AMOUNTS: dict[type[DomainEvent], tuple[str, ...]] = {
    PromotionalCreditGranted: ("amount",),
    EarningCredited: ("amount",),
    HoldPlaced: ("amount",),
    HoldCaptured: ("captured", "released"),
    HoldReleased: ("released",),
    WalletAdjusted: ("amount",),
    RequestAdmitted: ("reserved",),
    RequestSettled: ("cost", "reserved", "fee", "provider_amount", "platform_amount", "referral_amount"),
}
MONEY = (*AMOUNTS, JournalEntryPosted, RequestReleased)


def renumbered(log: list[Logged]) -> list[Logged]:
    """As somebody would leave it who hides that a position is gone."""
    return [logged._replace(position=position) for position, logged in enumerate(log, 1)]


@given(data=st.data(), seed=st.integers(0, 50), difference=st.integers(-1_000, 1_000).filter(bool))
@settings(max_examples=150)
def test_any_amount_that_is_changed_afterwards_is_found(data: st.DataObject, seed: int, difference: int) -> None:
    log = log_of(seed)
    places = [at for at, logged in enumerate(log) if type(logged.event) in AMOUNTS]
    at = data.draw(st.sampled_from(places))
    event = log[at].event
    member = data.draw(st.sampled_from(AMOUNTS[type(event)]))
    changed = msgspec.structs.replace(event, **{member: getattr(event, member) + difference})

    assert examined([*log[:at], log[at]._replace(event=changed), *log[at + 1 :]]) != []


@given(data=st.data(), seed=st.integers(0, 50), difference=st.integers(-1_000, 1_000).filter(bool))
@settings(max_examples=60)
def test_any_posting_that_is_changed_afterwards_is_found(data: st.DataObject, seed: int, difference: int) -> None:
    log = log_of(seed)
    at = data.draw(st.sampled_from([at for at, one in enumerate(log) if isinstance(one.event, JournalEntryPosted)]))
    event = log[at].event
    assert isinstance(event, JournalEntryPosted)
    line = data.draw(st.integers(0, len(event.postings) - 1))
    postings = list(event.postings)
    postings[line] = msgspec.structs.replace(postings[line], amount=postings[line].amount + difference)

    changed = msgspec.structs.replace(event, postings=tuple(postings))
    assert examined([*log[:at], log[at]._replace(event=changed), *log[at + 1 :]]) != []


@given(data=st.data(), seed=st.integers(0, 50), twice=st.booleans())
@settings(max_examples=100)
def test_any_event_of_money_that_is_taken_out_or_put_in_twice_is_found(
    data: st.DataObject, seed: int, twice: bool
) -> None:
    log = log_of(seed)
    at = data.draw(st.sampled_from([at for at, logged in enumerate(log) if isinstance(logged.event, MONEY)]))

    assert examined(renumbered([*log[:at], *([log[at]] * 2 if twice else []), *log[at + 1 :]])) != []


def test_a_position_that_is_missing_and_a_clock_that_runs_backwards_are_found() -> None:
    log = log_of(1)
    assert {found.invariant for found in examined([*log[:5], *log[6:]])} >= {14}
    turned = [*log[:-1], log[-1]._replace(recorded_at=log[0].recorded_at)]
    assert "the recorded time runs backwards" in {found.what for found in examined(turned)}


@pytest.mark.parametrize(
    ("kind", "member", "number"),
    [
        (PromotionalCreditGranted, "amount", 4),
        (EarningCredited, "amount", 6),
        (HoldPlaced, "amount", 5),
        (HoldCaptured, "captured", 5),
        (HoldReleased, "released", 5),
        (RequestSettled, "cost", 7),
        (RequestSettled, "fee", 7),
        (RequestSettled, "reserved", 7),
        (RequestSettled, "provider_amount", 7),
        (RequestSettled, "completion_tokens", 6),
        (RequestSettled, "cached_tokens", 6),
        (WalletAdjusted, "amount", 4),
    ],
)
def test_what_is_changed_breaks_the_invariant_that_it_is_about(kind: Any, member: str, number: int) -> None:
    log = log_of(1, 30)
    at = next(at for at, logged in enumerate(log) if isinstance(logged.event, kind))
    changed = msgspec.structs.replace(log[at].event, **{member: getattr(log[at].event, member) + 1})
    found = examined([*log[:at], log[at]._replace(event=changed), *log[at + 1 :]])
    assert number in {violation.invariant for violation in found}


def test_more_of_a_prompt_than_there_was_cannot_have_been_remembered() -> None:
    log = log_of(1, 30)
    settled = next(logged.event for logged in log if isinstance(logged.event, RequestSettled))
    too_many = {"cached_tokens": settled.prompt_tokens + 1}
    changed = [
        logged._replace(event=msgspec.structs.replace(logged.event, **too_many))
        if isinstance(logged.event, JobCompleted | RequestSettled) and logged.event.job_id == settled.job_id
        else logged
        for logged in log
    ]
    assert {violation.invariant for violation in examined(changed)} == {7}


# --- broken builds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("breakage", "number"), IN_THE_LOG, ids=[breakage.__name__ for breakage, _ in IN_THE_LOG])
def test_a_broken_build_is_found_in_its_log(breakage: Breakage, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage(monkeypatch)
    assert number in {found.invariant for seed in range(5) for found in examined(log_of(seed, 30))}


ONLY_THE_HISTORY_SHOWS = {"pays_from_one_bucket", "posts_an_entry_under_any_id", "turns_the_clock_back"}
"""Builds whose every batch looks right by itself; ``Wallet.check`` and ``JournalEntry.check`` stand before those."""


@pytest.mark.parametrize(
    "breakage",
    [breakage for breakage, _ in IN_THE_LOG if breakage.__name__ not in ONLY_THE_HISTORY_SHOWS],
    ids=lambda breakage: breakage.__name__,
)
def test_a_broken_build_is_stopped_before_its_commit(breakage: Breakage, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage(monkeypatch)
    days = (written for seed in range(5) for written in written_by(seed, 30, 3))
    with pytest.raises(InvariantViolated, match=r"invariant \d+: "):
        check_all(days)


def test_after_a_batch_that_was_stopped_the_next_one_is_judged_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    check = BatchCheck()
    first, *_ = written_by(1, 5, 3)
    one_sided = [
        msgspec.structs.replace(event, postings=event.postings[:1]) if isinstance(event, JournalEntryPosted) else event
        for batch in written_by(1, 5, 3)
        for event in batch.events
    ]
    with pytest.raises(InvariantViolated):
        check.check(first._replace(events=one_sided))
    for written in written_by(2, 5, 3):
        check.check(written)


def test_an_aggregate_that_does_not_know_its_last_event_is_found() -> None:
    written = next(written for written in written_by(1, 5, 3) if written.changed(Wallet))
    written.changed(Wallet)[0].version += 1
    with pytest.raises(InvariantViolated, match="invariant 14"):
        BatchCheck().check(written)


def test_holds_that_do_not_add_up_are_found_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_hold_too_much() -> Iterator[Written]:
        for written in written_by(1, 30, 3):
            for wallet in written.changed(Wallet):
                wallet.held += 1
            yield written

    monkeypatch.setattr(batch_module, "HOLDS_CHECKED_EVERY_BATCHES", 1)
    with pytest.raises(InvariantViolated, match="invariant 5: a wallet's holds do not add up"):
        check_all(with_a_hold_too_much())


# --- the list is complete --------------------------------------------------------------------------------------------


def test_there_are_fifteen_invariants_in_their_order() -> None:
    assert [invariant.number for invariant in INVARIANTS] == list(range(1, 16))
    assert all(bool(invariant.waits_for) == bool(invariant.because) for invariant in INVARIANTS)


@pytest.mark.parametrize(
    "invariant", [invariant for invariant in INVARIANTS if not invariant.applies], ids=lambda one: str(one.number)
)
def test_an_invariant_that_does_not_apply_has_no_event_that_it_is_about(invariant: Any) -> None:
    """Whoever adds such an event writes the check, and takes ``waits_for`` away."""
    about = [cls.TOPIC for cls in events.EVENT_CLASSES if cls.TOPIC.startswith(invariant.waits_for)]
    assert about == []


def test_every_invariant_that_applies_has_a_broken_build_that_is_caught() -> None:
    """Those of the tables are caught by the doctor and by a replay, in the integration tests."""
    caught = {number for _, number in IN_THE_LOG} | ({12} if IN_THE_READ_MODELS else set())
    assert caught | {13} == APPLICABLE  # 13: ``stores_another_amount``


def test_every_event_is_read_by_the_checks_or_known_to_move_no_money() -> None:
    """Whoever adds an event says in ``domain.invariants.transaction`` what it moves."""
    known = TransactionCheck(lambda _: None).known
    assert {cls.TOPIC for cls in events.EVENT_CLASSES} - {cls.TOPIC for cls in known} == set()
