"""The fifteen invariants by their number in money, section 12.6, and what a finding looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Invariant(NamedTuple):
    """One rule of the books.

    ``waits_for`` are the beginnings of the topics whose events the rule is about, for a rule that nothing in this
    release can break because it writes no such event. ``because`` says so in words.
    """

    number: int
    says: str
    waits_for: tuple[str, ...] = ()
    because: str = ""

    @property
    def applies(self) -> bool:
        return not self.waits_for


class Violation(NamedTuple):
    """A broken invariant: where in the log (0: in a table), whom it concerns, and what is wrong."""

    invariant: int
    position: int
    subject: str
    what: str

    def __str__(self) -> str:
        place = f"position {self.position}, {self.subject}" if self.position else self.subject
        return f"invariant {self.invariant}: {self.what} ({place})"


Report = Callable[[Violation], None]

INVARIANTS: tuple[Invariant, ...] = (
    Invariant(1, "each journal entry has two postings or more, all above zero, and its debits equal its credits"),
    Invariant(2, "over the whole journal debits equal credits at every position"),
    Invariant(3, "no wallet has a bucket, a balance or a withdrawable amount below zero, at any version"),
    Invariant(4, "the buckets of each wallet equal the account's journal sub-accounts at every commit"),
    Invariant(5, "each hold is resolved once: captured and released add up to what was placed"),
    Invariant(6, "each request ends once; a charge has exactly one journal entry, one usage row and one earning"),
    Invariant(7, "shares add up to the cost, which is within the hold and not below the minimum unless free"),
    Invariant(
        8,
        "each Stripe event and each checkout session counts once; refunds never exceed what was paid",
        ("CheckoutSession.", "StripeEvent.", "Wallet.CreditsPurchased", "Wallet.CreditsClawedBack"),
        "nobody can pay in yet",
    ),
    Invariant(
        9,
        "each withdrawal debits once and is refunded once at most",
        ("Withdrawal.", "Wallet.WithdrawalDebited", "Wallet.WithdrawalRefunded"),
        "nobody can be paid out yet",
    ),
    Invariant(
        10,
        "only earnings leave through a withdrawal",
        ("Withdrawal.", "Wallet.WithdrawalDebited", "Wallet.WithdrawalRefunded"),
        "nobody can be paid out yet",
    ),
    Invariant(
        11,
        "one code a referrer, one referrer an account; an invite is used once an account, and as often as it allows",
    ),
    Invariant(12, "every read model of the money equals a direct fold over the log"),
    Invariant(13, "a replay from the first event gives the same read models, bit for bit"),
    Invariant(14, "positions have no gap, recorded times never run backwards, and every event can be read"),
    Invariant(
        15,
        "the books agree with what Stripe reports at each closed reconciliation",
        ("Reconciliation.",),
        "there is nothing to reconcile with yet",
    ),
)
