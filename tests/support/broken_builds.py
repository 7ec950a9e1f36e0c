"""Builds of the product with one defect each, for showing that a check can fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from adapters.postgres.unit import AggregateCache, BatchUnit
from domain import events, journal, ledger
from domain.adjusting import ApproveAdjustment
from domain.adjustments import AdjustmentApproved
from domain.eventsourced import Aggregate, DomainEvent, Written
from domain.invites import InviteCodeDeactivated, InviteCodeRedeemed
from domain.inviting import RedeemInvite
from domain.journal import JournalEntry, JournalEntryPosted
from domain.key_budgets import KeyBudget
from domain.ledger import Admit, GrantCredit, Release, Settle
from domain.requests import InferenceRequest, JobCompleted, RequestSettled
from domain.wallet import (
    BUCKETS,
    EarningCredited,
    HoldCaptured,
    HoldPlaced,
    HoldReleased,
    PromotionalCreditGranted,
    Split,
    Wallet,
    WalletAdjusted,
)
from projections import open_requests
from projections.balances import Balances
from projections.earnings import Earnings
from projections.journal import JournalLines
from projections.open_requests import OpenRequests
from projections.page import Page
from projections.usage import UsageEntries

Breakage = Callable[[pytest.MonkeyPatch], None]

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def forgets_every_bound(patch: pytest.MonkeyPatch) -> None:
    """7: claims are believed, and the cost is not clamped to the hold."""
    patch.setattr(ledger, "min", lambda first, *_: first, raising=False)


def rounds_the_fee_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "percent_of", lambda amount, percent: -(-amount * percent // 100))


def keeps_what_is_released(patch: pytest.MonkeyPatch) -> None:
    """5: a released hold goes on holding."""
    patch.setattr(HoldReleased, "apply", lambda self, aggregate: None)


def spends_earnings_first(patch: pytest.MonkeyPatch) -> None:
    """10: what was earned goes before what was given."""

    def split_of(self: Wallet, amount: int) -> Split:
        taken: dict[str, int] = {}
        for bucket in reversed(BUCKETS):
            taken[bucket] = min(amount, getattr(self, bucket))
            amount -= taken[bucket]
        return Split(**taken)

    patch.setattr(Wallet, "split_of", split_of)


def settles_twice(patch: pytest.MonkeyPatch) -> None:
    """6: a settlement does not look whether the request has ended, and a wallet captures a hold that is gone."""
    decide = Settle.decide

    def decide_again(self: Settle, unit: Any) -> Any:
        request = unit.get(InferenceRequest, str(self.request_id))
        if isinstance(request.end, RequestSettled) and request.end.account_id == self.account_id:
            request.end = None
        return decide(self, unit)

    def capture(self: HoldCaptured, aggregate: Any) -> None:
        aggregate.held -= aggregate.holds.pop(self.hold_id, 0)
        for bucket in BUCKETS:
            setattr(aggregate, bucket, getattr(aggregate, bucket) - getattr(self.split, bucket))

    patch.setattr(Settle, "decide", decide_again)
    patch.setattr(HoldCaptured, "apply", capture)


def drops_a_journal_line(patch: pytest.MonkeyPatch) -> None:
    """1 and 2: the last line of each entry is missing."""
    patch.setattr(journal, "balanced", lambda lines: tuple(line for line in lines if line.amount)[:-1])


def pays_without_an_entry(patch: pytest.MonkeyPatch) -> None:
    """4 and 6: a settlement moves wallets, and the journal does not know."""
    post = ledger._post

    def post_credits_only(unit: Any, key: str, kind: str, *rest: Any) -> None:
        if kind != "settlement":
            post(unit, key, kind, *rest)

    patch.setattr(ledger, "_post", post_credits_only)


def forgets_whose_share_is_unclaimed(patch: pytest.MonkeyPatch) -> None:
    """6: unlinked machines share one pot, so that nobody can claim their own."""
    settlement = journal.settlement
    patch.setattr(journal, "settlement", lambda **parts: settlement(**{**parts, "machine_id": ""}))


def admits_on_money_that_is_held(patch: pytest.MonkeyPatch) -> None:
    """3: open holds do not count."""
    patch.setattr(Wallet, "balance", property(lambda self: self.credits + self.earnings))
    patch.setattr(Wallet, "check", lambda self: None)


def forgets_what_keys_hold(patch: pytest.MonkeyPatch) -> None:
    """Requests that run at once exceed their key's limit together."""
    patch.setattr(KeyBudget, "held", property(lambda _: 0))


def leaves_a_trace_of_failures(patch: pytest.MonkeyPatch) -> None:
    """A failed command's events go, but the aggregates keep what they were told."""
    patch.setattr(BatchUnit, "_roll_back", lambda self, mark: self.events.__delitem__(slice(mark, None)))


def believes_what_was_not_written(patch: pytest.MonkeyPatch) -> None:
    """After a lost commit the cache still holds its aggregates."""
    patch.setattr(AggregateCache, "evict", lambda self, ids: None)


def lists_free_requests_as_usage(patch: pytest.MonkeyPatch) -> None:
    """12: usage rows differ from the settlements."""
    statements = UsageEntries.statements

    def all_of_them(self: UsageEntries, written: Written) -> Any:
        charged = [
            msgspec.structs.replace(event, free=False) if isinstance(event, RequestSettled) else event
            for event in written.events
        ]
        return statements(self, written._replace(events=charged))

    patch.setattr(UsageEntries, "statements", all_of_them)


def stores_another_amount(patch: pytest.MonkeyPatch) -> None:
    """13: what is stored is not what was decided."""
    encode = events.encode

    def rounded(event: Any) -> bytes:
        if isinstance(event, HoldPlaced):
            event = msgspec.structs.replace(event, amount=event.amount // 10 * 10)
        return encode(event)

    patch.setattr(events, "encode", rounded)


# --- a unit of work that records something else ----------------------------------------------------------------------


class _OtherUnit:
    """Passes everything on, but records one kind of event with another payload, or not at all."""

    def __init__(self, unit: Any, kind: type[DomainEvent], change: Callable[..., dict[str, Any] | None]) -> None:
        self._unit = unit
        self._kind = kind
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unit, name)

    def record(self, aggregate: Aggregate, event: type[DomainEvent], **payload: Any) -> None:
        changed = {**payload, **(self._change(**payload) or {})} if event is self._kind else payload
        if event is not self._kind or self._change(**payload) is not None:
            self._unit.record(aggregate, event, **changed)


def records(
    command: type[Any], kind: type[DomainEvent], change: Callable[..., dict[str, Any] | None], name: str
) -> Breakage:
    """A command that records an event with other members; nothing at all where ``change`` gives None."""

    def breakage(patch: pytest.MonkeyPatch) -> None:
        decide = command.decide
        patch.setattr(command, "decide", lambda self, unit: decide(self, _OtherUnit(unit, kind, change)))

    breakage.__name__ = name
    return breakage


def pays_from_one_bucket(patch: pytest.MonkeyPatch) -> None:
    """3: whatever is spent is taken from promotional credit, whether there is any or not."""
    patch.setattr(Wallet, "split_of", lambda self, amount: Split(promotional=amount))
    patch.setattr(Wallet, "check", lambda self: None)


def charges_beyond_the_hold(patch: pytest.MonkeyPatch) -> None:
    """5 and 7: what a machine claims is charged, whatever was held."""
    forgets_every_bound(patch)
    patch.setattr(Wallet, "split_of", lambda self, amount: Split(promotional=amount))
    patch.setattr(Wallet, "check", lambda self: None)


def settles_again_and_again(patch: pytest.MonkeyPatch) -> None:
    """6: as ``settles_twice``, and nothing asks whether an entry is posted twice."""
    settles_twice(patch)
    patch.setattr(JournalEntry, "check", lambda self: None)
    patch.setattr(Wallet, "split_of", lambda self, amount: Split(promotional=amount))
    patch.setattr(Wallet, "check", lambda self: None)


def posts_an_entry_under_any_id(patch: pytest.MonkeyPatch) -> None:
    """6: the id of an entry does not follow from its key, so that a second one would not be noticed."""
    post = ledger._post

    def elsewhere(unit: Any, key: str, kind: str, postings: Any, reference: str) -> None:
        class Elsewhere:
            now = unit.now

            def fresh(self, kind: type[Aggregate], key: str) -> Any:
                return unit.fresh(kind, f"another-{key}")

            record = staticmethod(unit.record)

        post(Elsewhere(), key, kind, postings, reference)  # type: ignore[arg-type]  # enough of a unit for a post

    patch.setattr(ledger, "_post", elsewhere)


def turns_the_clock_back(patch: pytest.MonkeyPatch) -> None:
    """14: each transaction is recorded before the one before it."""
    begin = BatchUnit.__init__

    def begin_earlier(self: BatchUnit, cache: AggregateCache, now: datetime) -> None:
        begin(self, cache, NOON + (NOON - now))

    patch.setattr(BatchUnit, "__init__", begin_earlier)


def forgets_usage(patch: pytest.MonkeyPatch) -> None:
    """12: settlements are not listed as usage."""
    patch.setattr(UsageEntries, "statements", lambda self, written: ())


def forgets_balances(patch: pytest.MonkeyPatch) -> None:
    """12: a wallet's row stays what it was at first."""
    statements = Balances.statements
    patch.setattr(
        Balances,
        "statements",
        lambda self, written: [
            (sql, rows) for sql, rows in statements(self, written) if all(version == 1 for version in rows[1])
        ],
    )


def keeps_ended_requests_open(patch: pytest.MonkeyPatch) -> None:
    """12: a request that has ended stays in the list of open ones."""
    statements = OpenRequests.statements

    def without_deletions(self: OpenRequests, written: Written) -> Any:
        return [(sql, rows) for sql, rows in statements(self, written) if sql != open_requests.DELETE]

    patch.setattr(OpenRequests, "statements", without_deletions)


def loses_the_first_earning_of_a_page(patch: pytest.MonkeyPatch) -> None:
    """12: a lagging projection misses a row."""
    patch.setattr(Earnings, "apply", _on_another_page(Earnings.apply, lambda page, kind: Page.of(page, kind)[1:]))


def reads_debits_as_credits(patch: pytest.MonkeyPatch) -> None:
    """12: the journal's table has its sides exchanged."""
    sides = {"debit": "credit", "credit": "debit"}

    def exchanged(page: Page, kind: Any) -> list[Any]:
        turned = []
        for position, recorded_at, event in Page.of(page, kind):
            postings = tuple(
                msgspec.structs.replace(line, direction=sides[line.direction], amount=line.amount + number)
                for number, line in enumerate(event.postings)
            )
            turned.append((position, recorded_at, msgspec.structs.replace(event, postings=postings)))
        return turned

    patch.setattr(JournalLines, "apply", _on_another_page(JournalLines.apply, exchanged))


def _on_another_page(apply: Any, of: Callable[[Page, Any], Any]) -> Any:
    """A projection's ``apply`` that is shown other events than stand in the log."""

    def misled(self: Any, connection: Any, page: Page) -> None:
        apply(self, connection, SimpleNamespace(of=lambda kind: of(page, kind)))

    return misled


def _more(member: str, by: int = 1) -> Callable[..., dict[str, Any]]:
    return lambda **payload: {member: payload[member] + by}


def _never(**_: Any) -> None:
    return None


def forgets_who_used_an_invite(patch: pytest.MonkeyPatch) -> None:
    """11: a use leaves no trace in the code, so that it is never used up."""
    patch.setattr(InviteCodeRedeemed, "apply", lambda self, aggregate: None)


def never_ends_an_invite(patch: pytest.MonkeyPatch) -> None:
    """11: a code that was deactivated is still taken."""
    patch.setattr(InviteCodeDeactivated, "apply", lambda self, aggregate: None)


IN_THE_LOG: tuple[tuple[Breakage, int], ...] = (
    (drops_a_journal_line, 1),
    (records(Settle, JournalEntryPosted, lambda postings, **_: {"postings": postings[:1]}, "posts_one_side"), 2),
    (pays_from_one_bucket, 3),
    (records(GrantCredit, PromotionalCreditGranted, _more("amount"), "grants_more_than_it_posts"), 4),
    (records(Settle, EarningCredited, _more("amount", -1), "books_an_earning_of_another_amount"), 4),
    (pays_without_an_entry, 4),
    (records(Release, HoldReleased, _more("released"), "releases_more_than_was_held"), 5),
    (records(Settle, HoldCaptured, _more("released"), "captures_and_releases_more_than_was_held"), 5),
    (records(Settle, HoldCaptured, _never, "never_captures_the_hold"), 5),
    (records(Release, HoldReleased, _never, "never_releases_the_hold"), 5),
    (records(Admit, HoldPlaced, _more("amount", -1), "holds_less_than_it_reserves"), 5),
    (settles_again_and_again, 6),
    (posts_an_entry_under_any_id, 6),
    (forgets_whose_share_is_unclaimed, 6),
    (records(Settle, EarningCredited, _never, "never_pays_the_provider"), 6),
    (records(Settle, JobCompleted, _more("completion_tokens"), "charges_other_usage_than_completed"), 6),
    (records(Settle, JobCompleted, _more("units"), "charges_other_units_than_completed"), 6),
    (records(Settle, JobCompleted, _more("cached_tokens"), "charges_another_memory_than_completed"), 6),
    (charges_beyond_the_hold, 7),
    (turns_the_clock_back, 14),
    (records(ApproveAdjustment, WalletAdjusted, _more("amount"), "adjusts_more_than_it_posts"), 4),
    (records(ApproveAdjustment, WalletAdjusted, _never, "posts_an_adjustment_and_moves_nothing"), 4),
    (records(ApproveAdjustment, JournalEntryPosted, _never, "adjusts_without_an_entry"), 4),
    (records(ApproveAdjustment, AdjustmentApproved, _never, "adjusts_without_approval"), 4),
    (
        records(
            ApproveAdjustment,
            WalletAdjusted,
            lambda proposed_by, **_: {"approved_by": proposed_by},
            "lets_one_admin_adjust_alone",
        ),
        4,
    ),
    (forgets_who_used_an_invite, 11),
    (never_ends_an_invite, 11),
    (records(RedeemInvite, PromotionalCreditGranted, _never, "uses_an_invite_without_its_credit"), 11),
    (records(RedeemInvite, PromotionalCreditGranted, _more("amount"), "credits_more_than_an_invite_gives"), 11),
    (records(RedeemInvite, InviteCodeRedeemed, _never, "credits_an_invite_that_nobody_used"), 11),
    (records(RedeemInvite, JournalEntryPosted, _never, "uses_an_invite_without_an_entry"), 11),
)
"""Builds that write a wrong log, each with the invariant that it breaks."""

IN_THE_READ_MODELS: tuple[Breakage, ...] = (
    forgets_usage,
    lists_free_requests_as_usage,
    forgets_balances,
    keeps_ended_requests_open,
    loses_the_first_earning_of_a_page,
    reads_debits_as_credits,
)
"""Builds whose log is right and whose tables are not: invariant 12."""
