"""Reads the event log like an auditor who trusts nobody: a fold of its own that stops at the first broken invariant.

The numbers in the messages are those of money, section 12.6. It shares no code with the aggregates that it checks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from uuid import UUID

from domain.accounts import AccountOpened
from domain.adjustments import AdjustmentApproved, AdjustmentProposed, AdjustmentRejected
from domain.eventsourced import DomainEvent
from domain.invites import InviteCodeCreated, InviteCodeDeactivated, InviteCodeRedeemed
from domain.journal import JournalEntryPosted
from domain.key_budgets import KeySpendCaptured, KeySpendHeld, KeySpendReleased
from domain.machines import MachineLinked, MachineRegistered, ProviderSessionClosed, ProviderSessionOpened
from domain.periods import PeriodClosed, PeriodLocked
from domain.requests import (
    JobCompleted,
    JobDispatched,
    JobFailed,
    RequestAdmitted,
    RequestReleased,
    RequestSettled,
    UsageClaimClamped,
)
from domain.wallet import (
    EarningCredited,
    HoldCaptured,
    HoldPlaced,
    HoldReleased,
    PromotionalCreditGranted,
    WalletAdjusted,
)

SPENDING_ORDER = ("promotional", "purchased", "reward", "referral", "provider")
CREDIT_BUCKETS = ("promotional", "purchased")
LIABILITY_OF = {"promotional": "2005", "purchased": "2000", "reward": "2120", "referral": "2110", "provider": "2100"}
BUCKET_OF_EARNING = {"provider": "provider", "referral": "referral", "admin_reward": "reward", "base_reward": "reward"}

WITHOUT_MONEY = (
    AccountOpened,
    JobFailed,
    MachineRegistered,
    MachineLinked,
    ProviderSessionOpened,
    ProviderSessionClosed,
    AdjustmentProposed,
    AdjustmentApproved,
    AdjustmentRejected,
    PeriodLocked,
    PeriodClosed,
)


class Auditor:
    """``buckets`` and ``holds`` are by account, ``ledger`` is debits minus credits by code and sub-account."""

    def __init__(self) -> None:
        self.versions: Counter[UUID] = Counter()
        self.buckets: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.holds: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.hold_ids: set[str] = set()
        self.captures: dict[str, HoldCaptured] = {}
        self.earned: dict[str, EarningCredited] = {}
        self.ledger: Counter[tuple[str, str]] = Counter()
        self.debits = 0
        self.credits = 0
        self.entries: dict[str, JournalEntryPosted] = {}
        self.admissions: dict[str, RequestAdmitted] = {}
        self.jobs: dict[str, JobDispatched] = {}
        self.completions: dict[str, JobCompleted] = {}
        self.clamped_claims: set[str] = set()
        self.ends: dict[str, RequestSettled | RequestReleased] = {}
        self.key_holds: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.key_spent: Counter[tuple[str, str]] = Counter()
        self.invites: dict[str, InviteCodeCreated] = {}
        self.uses: defaultdict[str, list[InviteCodeRedeemed]] = defaultdict(list)
        self.ended_invites: set[str] = set()
        self.invited: Counter[str] = Counter()

    def read(self, events: Iterable[DomainEvent]) -> None:
        for event in events:
            self.versions[event.originator_id] += 1
            assert event.originator_version == self.versions[event.originator_id], (
                "14: an aggregate's versions have gaps"
            )
            self._read(event)

    def _read(self, event: DomainEvent) -> None:
        match event:
            case PromotionalCreditGranted():
                assert event.amount > 0, "a credit is more than nothing"
                self._move(event.account_id, "promotional", event.amount)
                if event.reference.startswith("invite:"):
                    self.invited[f"{event.reference}:{event.account_id}"] += event.amount
            case InviteCodeCreated():
                self.invites[event.code] = event
            case InviteCodeRedeemed():
                self._read_use(event)
            case InviteCodeDeactivated():
                self.ended_invites.add(event.code)
            case EarningCredited():
                self._read_earning(event)
            case WalletAdjusted():
                assert event.approved_by != event.proposed_by, "an adjustment needs two people"
                self._move(event.account_id, event.bucket, event.amount)
            case HoldPlaced():
                self._read_hold(event)
            case HoldCaptured():
                self._read_capture(event)
            case HoldReleased():
                placed = self._resolve(event.account_id, event.hold_id)
                assert event.released == placed, "5: a released hold returns all of it"
            case JournalEntryPosted():
                self._read_entry(event)
            case RequestAdmitted():
                assert event.request_id not in self.admissions, "6: a request is admitted once"
                self.admissions[event.request_id] = event
            case JobDispatched():
                assert event.job_id not in self.jobs, "a job is dispatched once"
                self.jobs[event.job_id] = event
            case JobCompleted():
                assert event.job_id not in self.completions, "6: a job completes once"
                self.completions[event.job_id] = event
            case UsageClaimClamped():
                self.clamped_claims.add(event.job_id)
            case RequestSettled():
                self._read_settlement(event)
            case RequestReleased():
                self._end(event)
            case KeySpendHeld() | KeySpendCaptured() | KeySpendReleased():
                self._read_key_spend(event)
            case _:
                assert isinstance(event, WITHOUT_MONEY), f"the auditor does not know {event.TOPIC}"

    # --- wallets ---------------------------------------------------------------------------------------------------

    def _move(self, account_id: str, bucket: str, amount: int) -> None:
        self.buckets[account_id][bucket] += amount
        self._check_wallet(account_id)

    def _check_wallet(self, account_id: str) -> None:
        amounts = self.buckets[account_id]
        assert all(amount >= 0 for amount in amounts.values()), "3: a bucket is below zero"
        balance, withdrawable = self.balance(account_id)
        assert balance >= 0, "3: a balance is below zero"
        assert 0 <= withdrawable <= balance, "3: what can be withdrawn is below zero or above the balance"

    def balance(self, account_id: str) -> tuple[int, int]:
        """What can be spent, and what of it can be withdrawn."""
        amounts, held = self.buckets[account_id], sum(self.holds[account_id].values())
        credit = sum(amounts[bucket] for bucket in CREDIT_BUCKETS)
        earned = sum(amounts.values()) - credit
        return credit + earned - held, earned - max(0, held - credit)

    def _read_earning(self, event: EarningCredited) -> None:
        assert event.amount > 0, "an earning is more than nothing"
        assert event.reference not in self.earned, "6: a job earns once"
        self.earned[event.reference] = event
        self._move(event.account_id, BUCKET_OF_EARNING[event.kind], event.amount)

    def _read_hold(self, event: HoldPlaced) -> None:
        assert event.hold_id not in self.hold_ids, "5: a hold is placed once"
        assert event.amount >= 0, "5: a hold is not negative"
        self.hold_ids.add(event.hold_id)
        self.holds[event.account_id][event.hold_id] = event.amount
        self._check_wallet(event.account_id)

    def _resolve(self, account_id: str, hold_id: str) -> int:
        assert hold_id in self.holds[account_id], "5: a hold is resolved once, in the wallet that it was placed in"
        return self.holds[account_id].pop(hold_id)

    def _read_capture(self, event: HoldCaptured) -> None:
        placed = self._resolve(event.account_id, event.hold_id)
        assert event.captured + event.released == placed, "5: captured and released are what was placed"
        assert 0 <= event.captured <= placed, "5: no more is captured than was held"
        spent = {bucket: getattr(event.split, bucket) for bucket in SPENDING_ORDER}
        assert sum(spent.values()) == event.captured, "5: the split is what was captured"
        assert all(amount >= 0 for amount in spent.values()), "5: a split has no negative part"
        amounts = self.buckets[event.account_id]
        for position, bucket in enumerate(SPENDING_ORDER):
            if spent[bucket] < amounts[bucket]:
                later = SPENDING_ORDER[position + 1 :]
                assert not any(spent[other] for other in later), "10: credits are spent before earnings, in their order"
            amounts[bucket] -= spent[bucket]
        self.captures[event.hold_id] = event
        self._check_wallet(event.account_id)

    def _read_use(self, event: InviteCodeRedeemed) -> None:
        invite, uses = self.invites[event.code], self.uses[event.code]
        assert event.code not in self.ended_invites, "11: an invite is used after its end"
        assert event.account_id not in {use.account_id for use in uses}, "11: an account uses an invite once"
        assert event.use_number == len(uses) + 1 <= invite.max_uses, "11: an invite is used as often as it allows"
        assert event.amount == invite.amount, "11: each use is worth the same"
        uses.append(event)

    # --- the journal -----------------------------------------------------------------------------------------------

    def _read_entry(self, event: JournalEntryPosted) -> None:
        assert event.entry_key not in self.entries, "6: a journal entry is posted once"
        self.entries[event.entry_key] = event
        assert len(event.postings) >= 2, "1: an entry has at least two postings"
        for posting in event.postings:
            assert posting.amount > 0, "1: a posting moves something"
            assert posting.direction in ("debit", "credit"), "1: a posting is a debit or a credit"
            signed = posting.amount if posting.direction == "debit" else -posting.amount
            self.ledger[posting.account_code, posting.sub_account] += signed
            self.debits += max(0, signed)
            self.credits += max(0, -signed)
        debits = sum(posting.amount for posting in event.postings if posting.direction == "debit")
        total = sum(posting.amount for posting in event.postings)
        assert 2 * debits == total, "1: an entry's debits and credits differ"
        assert self.debits == self.credits, "2: the journal's debits and credits differ"

    # --- requests --------------------------------------------------------------------------------------------------

    def _end(self, event: RequestSettled | RequestReleased) -> None:
        assert event.request_id in self.admissions, "6: only an admitted request ends"
        assert event.request_id not in self.ends, "6: a request ends once"
        self.ends[event.request_id] = event

    def _read_settlement(self, event: RequestSettled) -> None:
        self._end(event)
        admission, job = self.admissions[event.request_id], self.jobs[event.job_id]
        assert event.account_id == admission.account_id, "7: who was admitted pays"
        assert event.reserved == admission.reserved, "7: what was held is what was held"
        assert (event.machine_id, event.provider_account_id) == (job.machine_id, job.provider_account_id)
        shares = (event.provider_amount, event.platform_amount, event.referral_amount)
        assert all(share >= 0 for share in shares), "7: a share is below zero"
        assert sum(shares) == event.cost, "7: the shares are the cost"
        assert event.cost <= event.reserved, "7: no more is charged than was held"
        assert event.free == (job.provider_account_id == admission.account_id), "7: one's own machine serves free"
        if event.free:
            assert event.cost == 0, "7: one's own machine serves free"
        else:
            assert event.cost >= min(admission.quote.minimum_charge, event.reserved), "7: less than the minimum"
        assert 0 <= event.prompt_tokens <= admission.prompt_bound, "7: prompt tokens above their bound"
        assert 0 <= event.completion_tokens <= admission.output_bound, "7: completion tokens above their bound"
        assert 0 <= event.units <= admission.units_bound, "7: units above their bound"
        assert event.unit == admission.quote.unit, "7: charged in the unit of the quote"
        assert 0 <= event.cached_tokens <= event.prompt_tokens, "7: more was remembered than was asked"
        if not event.units:
            quote = admission.quote
            price = event.prompt_tokens * quote.input_price + event.completion_tokens * quote.output_price
            price -= event.cached_tokens * (quote.input_price - quote.cache_read_price)
            assert event.free or 10**6 * event.raw_cost <= max(price, 10**6 * quote.minimum_charge), (
                "7: above the price"
            )
        completed = self.completions[event.job_id]
        usage = (event.prompt_tokens, event.completion_tokens, event.units, event.cached_tokens)
        assert usage == (
            completed.prompt_tokens,
            completed.completion_tokens,
            completed.units,
            completed.cached_tokens,
        ), "6: what completed is what is charged"

    # --- what keys may spend ---------------------------------------------------------------------------------------

    def _read_key_spend(self, event: KeySpendHeld | KeySpendCaptured | KeySpendReleased) -> None:
        holds = self.key_holds[event.key_id]
        match event:
            case KeySpendHeld():
                assert event.request_id not in holds, "a key holds once for a request"
                holds[event.request_id] = event.amount
                taken = self.key_spent[event.key_id, event.period] + sum(holds.values())
                assert taken <= event.limit, "a key spends more than it may"
            case KeySpendCaptured():
                placed = holds.pop(event.request_id)
                assert 0 <= event.amount <= placed, "a key spends more than it held"
                self.key_spent[event.key_id, event.period] += event.amount
            case KeySpendReleased():
                holds.pop(event.request_id)

    # --- where a transaction ends ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Check what must hold whenever a command is done."""
        for account_id, amounts in self.buckets.items():
            for bucket, code in LIABILITY_OF.items():
                assert amounts[bucket] == -self.ledger[code, account_id], f"4: {bucket} differs from account {code}"
        for code, sub_account in self.ledger:
            if code in LIABILITY_OF.values():
                assert sub_account in self.buckets, "4: the journal knows a wallet that is none"
        open_requests = self.admissions.keys() - self.ends.keys()
        holds = {hold_id: amount for wallet in self.holds.values() for hold_id, amount in wallet.items()}
        assert holds.keys() == open_requests, "5: the open holds are those of the open requests"
        for hold_id, amount in holds.items():
            assert amount == self.admissions[hold_id].reserved, "5: a hold is what was reserved"
        for key_id, kept in self.key_holds.items():
            for request_id, amount in kept.items():
                admission = self.admissions[request_id]
                assert request_id in open_requests, "a key holds for a request that has ended"
                assert (admission.key_id, admission.reserved) == (key_id, amount), (
                    "a key holds what its request reserved"
                )
        uses = {f"invite:{use.code}:{use.account_id}": use.amount for of in self.uses.values() for use in of}
        assert uses == self.invited, "11: what an invite gives is what was credited"
        assert uses.keys() == {key for key in self.entries if key.startswith("invite:")}, "11: one entry a use"
        settlements = [end for end in self.ends.values() if isinstance(end, RequestSettled)]
        for settled in settlements:
            self._close_settlement(settled)
        keys = {key for key in self.entries if key.startswith("settle:")}
        assert keys == {f"settle:{settled.job_id}" for settled in settlements if settled.cost}, "6: one entry a charge"
        providers = {key: event for key, event in self.earned.items() if event.kind == "provider"}
        owed = {settled.job_id for settled in settlements if settled.provider_amount and settled.provider_account_id}
        assert providers.keys() == owed, "6: one earning a charge"

    def _close_settlement(self, settled: RequestSettled) -> None:
        capture = self.captures[settled.request_id]
        assert (capture.account_id, capture.captured) == (settled.account_id, settled.cost), "5: the cost is captured"
        expected: Counter[tuple[str, str]] = Counter()
        for bucket, code in LIABILITY_OF.items():
            expected[code, settled.account_id] += getattr(capture.split, bucket)
        if settled.provider_account_id:
            expected["2100", settled.provider_account_id] -= settled.provider_amount
        else:
            expected["2190", settled.machine_id] -= settled.provider_amount
        expected["4000", ""] -= settled.platform_amount
        expected["2110", settled.referrer_account] -= settled.referral_amount
        posted: Counter[tuple[str, str]] = Counter()
        entry = self.entries.get(f"settle:{settled.job_id}")
        for posting in entry.postings if entry else ():
            signed = posting.amount if posting.direction == "debit" else -posting.amount
            posted[posting.account_code, posting.sub_account] += signed
        assert {key: value for key, value in posted.items() if value} == {
            key: value for key, value in expected.items() if value
        }, "6: the entry of a settlement says what the settlement says"
        earning = self.earned.get(settled.job_id)
        if earning is not None:
            assert (earning.account_id, earning.amount) == (settled.provider_account_id, settled.provider_amount)

    # --- totals ----------------------------------------------------------------------------------------------------

    def usage_by_account(self) -> dict[str, tuple[int, int]]:
        """12: charged requests and their cost, folded from the settlements alone."""
        totals: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for end in self.ends.values():
            if isinstance(end, RequestSettled) and not end.free:
                totals[end.account_id][0] += 1
                totals[end.account_id][1] += end.cost
        return {account: (count, cost) for account, (count, cost) in totals.items()}

    def earnings_by_machine(self) -> dict[str, int]:
        """12: what each machine earned, folded from the settlements alone."""
        totals: Counter[str] = Counter()
        for end in self.ends.values():
            if isinstance(end, RequestSettled) and end.provider_amount:
                totals[end.machine_id] += end.provider_amount
        return dict(totals)
