"""Random histories of the ledger's commands against a plain model, an independent auditor and the log itself.

A failure prints the steps that lead to it, and a blob that repeats them. The broken builds at the end show that the
machine can fail: each plants one defect into the product and expects to be told.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from domain.accounts import Account
from domain.errors import Conflict, DarkbloomError, InsufficientFunds, InvariantViolated, UnknownRequest
from domain.eventsourced import Actor, Aggregate, Written
from domain.journal import JournalEntry
from domain.key_budgets import KeyBudget, KeyLimit
from domain.ledger import Admit, CloseSession, Dispatch, GrantCredit, OpenAccount, OpenSession, Release, Settle
from domain.machines import ProviderMachine
from domain.pricing import Quote
from domain.requests import InferenceRequest, JobFailure, RequestReleased, RequestSettled, job_id_of
from domain.wallet import Wallet
from tests.support.auditor import Auditor
from tests.support.broken_builds import (
    Breakage,
    admits_on_money_that_is_held,
    believes_what_was_not_written,
    drops_a_journal_line,
    forgets_every_bound,
    forgets_what_keys_hold,
    forgets_whose_share_is_unclaimed,
    keeps_what_is_released,
    leaves_a_trace_of_failures,
    lists_free_requests_as_usage,
    pays_without_an_entry,
    rounds_the_fee_up,
    settles_twice,
    spends_earnings_first,
    stores_another_amount,
)
from tests.support.ledger_model import BUCKETS, Attempt, Model, Refused, Request
from tests.support.memory_ledger import BEGINNING, MemoryLedger, replayed, reread, state
from tests.support.read_models import ReadModels, rebuilt

KINDS: dict[str, type[Aggregate]] = {
    kind.KIND: kind for kind in (Account, Wallet, JournalEntry, KeyBudget, InferenceRequest, ProviderMachine)
}
ACCOUNTS = ("ada", "ben", "cyd")
MACHINES = (("of-nobody", ""), ("of-ada", "ada"), ("of-ben", "ben"))
"""Machines, each with the account that it is linked to."""

QUOTES = (
    Quote(1_000_000, 2_000_000, 500_000, "built_in", 1, 100),
    Quote(50_000, 200_000, 25_000, "default", 1, 100),
    Quote(2_000_001, 999_999, 1_000_000, "built_in", 1, 250),
    Quote(130_000, 1_040_000, 130_000, "built_in", 1, 0),
    Quote(1_000_001, 3, 0, "built_in", 1, 0),
    Quote(0, 0, 0, "built_in", 1, 0),
    Quote(0, 0, 0, "default", 1, 100, "pixel", 1_500),
    Quote(0, 0, 0, "built_in", 1, 0, "audio_ms", 60_001),
    Quote(10_000, 0, 5_000, "built_in", 1, 1, "pixel", 7),
)
KEYS = (None, 150, 900)
"""What the key of a request may spend in a day, in micro-USD. Each account has one key of each kind."""

UNIT_PRICES: dict[str, Callable[[int], Fraction]] = {
    "": lambda price: Fraction(0),
    "pixel": lambda price: Fraction(price, 1024 * 1024),
    "audio_ms": lambda price: Fraction(price, 60 * 1000),
}
"""Micro-USD for one of each unit: an image of 1024x1024 and a minute cost the price."""
HARDWARE: tuple[dict[str, str | int], ...] = ({"chip_name": "M4"}, {"chip_name": "M4", "memory_gb": 64})
REASONS = ("rejected", "cancelled", "failed", "expired", "no_terminal")
NEVER_ADMITTED = UUID(int=0)

CACHE_MAX = 4
"""Far fewer aggregates than a history touches, so that most commands read theirs from the log."""

REFUSALS = (DarkbloomError, ValueError, KeyError)
"""What a command may raise; anything that is no DarkbloomError becomes InternalError in the writer."""

accounts = st.sampled_from(ACCOUNTS)
machines = st.sampled_from(MACHINES)
quotes = st.sampled_from(QUOTES)
limits = st.sampled_from(KEYS)
credit = st.sampled_from((20_000, 3_000, 450, 100, 1))
poor = st.sampled_from((1, 100, 450, 3_000))
tokens = st.integers(0, 1_500)
units = st.integers(0, 3_000_000)
used_up = st.tuples(tokens, tokens, units)
"""Tokens read, tokens written, and what else the quote meters."""
claims = st.tuples(tokens, tokens, units, tokens, units, tokens)
"""What a machine says of all that, what was delivered, and how much of the prompt it says it remembered."""
indexes = st.integers(0, 7)
attempts = st.integers(1, 3)
failures = st.sets(st.integers(1, 3), max_size=2)
fees = st.sampled_from((0, 5, 33, 100))
remembered = st.sampled_from((0, 0, 1, 700, 2_000))
whole_request = (
    accounts,
    limits,
    quotes,
    used_up,
    remembered,
    st.sampled_from((0, 40)),
    machines,
    attempts,
    fees,
)
"""Account, limit of its key, quote, what is used, how much of the prompt the machine says it remembered, how much of
each is claimed too much, machine, attempts that it took, fee."""


class LedgerMachine(RuleBasedStateMachine):
    """Commands join an open batch until it is committed or lost; every step is checked as if it were the last."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger(cache_max=CACHE_MAX)
        self.model = Model()
        self.auditor = Auditor()
        self.tables = ReadModels()
        self.shadow: dict[UUID, Aggregate] = {}
        self.done: list[tuple[Any, Any]] = []
        self.saved_model = self.model.copy()
        self.saved_done = 0
        self.audited = 0

    # --- running a command -------------------------------------------------------------------------------------------

    def perform(
        self, command: Any, foretell: Callable[[], Any], *, refusal: type[Exception] | None = None
    ) -> tuple[Any, Any]:
        """Run a command. Returns what it answered and what the model foretold, or nothing twice when both refuse."""
        marked = len(self.ledger.unit.events)
        try:
            expected = foretell()
        except Refused:
            assert self._is_refused(command, refusal), f"{type(command).__name__} must be refused"
            assert len(self.ledger.unit.events) == marked, "a failed command leaves nothing in the log"
            return None, None
        result = self.ledger.run(command)
        if not isinstance(command, OpenAccount):  # which says whether this very call opened the account
            self._repeat(command, result)
        self.done.append((command, result))
        return result, expected

    def _is_refused(self, command: Any, refusal: type[Exception] | None) -> bool:
        try:
            self.ledger.run(command)
        except REFUSALS as error:
            return refusal is None or isinstance(error, refusal)
        return False

    def _repeat(self, command: Any, first: Any) -> None:
        marked = len(self.ledger.unit.events)
        result = self.ledger.run(command)
        assert len(self.ledger.unit.events) == marked, "a repeated command appends nothing"
        assert result == first, "a repeated command returns the first result"

    def request(self, index: int) -> UUID:
        """One of the admitted requests: those that are open come first, the newest before the older."""
        known = sorted(self.model.requests, key=lambda key: (self.model.requests[key].end is not None, -key.int))
        return known[index % len(known)]

    # --- money comes in ----------------------------------------------------------------------------------------------

    @initialize(amounts=st.tuples(credit, poor, poor), served=st.lists(st.tuples(*whole_request), max_size=8))
    def begin_with_a_past(self, amounts: tuple[int, int, int], served: list[Any]) -> None:
        for account, amount in zip(ACCOUNTS, amounts, strict=True):
            self.grant(account, amount, f"first-{account}")
        for request in served:
            self.serve(*request)

    @rule(account=accounts, amount=credit | st.integers(-1, 0), reference=st.sampled_from("abcd"))
    def grant(self, account: str, amount: int, reference: str) -> None:
        opened, is_new = self.perform(OpenAccount(account_id=account), lambda: self.model.open_account(account))
        assert opened is is_new
        result, expected = self.perform(
            GrantCredit(account_id=account, amount_micro_usd=amount, reference=reference),
            lambda: self.model.grant(account, amount, reference),
            refusal=Conflict,
        )
        assert result == expected

    # --- the life of a request ---------------------------------------------------------------------------------------

    @rule(asked=st.tuples(accounts, limits, quotes), bounds=used_up, machine=machines, times=attempts)
    def begin(
        self, asked: tuple[str, int | None, Quote], bounds: tuple[int, int, int], machine: tuple[str, str], times: int
    ) -> None:
        """Requests that are left open."""
        for _ in range(times):
            key = self._admit_new(*asked, *bounds)
            if key is not None:
                self._dispatch(key, 1, machine, set())

    @rule(request=st.tuples(*whole_request))
    def serve_one_more(self, request: Any) -> None:
        self.serve(*request)

    def serve(
        self,
        account: str,
        limit: int | None,
        quote: Quote,
        used: tuple[int, int, int],
        remembered_tokens: int,
        too_many: int,
        machine: tuple[str, str],
        tries: int,
        fee_percent: int,
    ) -> None:
        """A whole request, as most of them go."""
        key = self._admit_new(account, limit, quote, used[0] + 30, used[1] + 20, used[2] + 10)
        if key is not None:
            for number in range(1, tries + 1):
                self._dispatch(key, number, machine, {number - 1} - {0})
            claim = (*(count + too_many for count in used), used[1] + 16, used[2], remembered_tokens)
            self._settle(key, tries, account, claim, fee_percent)

    @precondition(lambda self: self.model.requests)
    @rule(index=indexes, account=accounts, limit=limits, quote=quotes, prompt=tokens)
    def admit_what_is_known(self, index: int, account: str, limit: int | None, quote: Quote, prompt: int) -> None:
        self._admit(self.request(index), account, limit, quote, prompt, prompt, prompt)

    @precondition(lambda self: self.model.requests)
    @rule(index=indexes, number=attempts, machine=machines, failed=failures)
    def dispatch(self, index: int, number: int, machine: tuple[str, str], failed: set[int]) -> None:
        self._dispatch(self.request(index), number, machine, {one for one in failed if one < number})

    @precondition(lambda self: self.model.requests)
    @rule(index=indexes, number=attempts, claim=claims, fee_percent=fees)
    def settle(self, index: int, number: int, claim: tuple[int, ...], fee_percent: int) -> None:
        key = self.request(index)
        self._settle(key, number, self.model.requests[key].account, claim, fee_percent)

    @precondition(lambda self: self.model.requests)
    @rule(index=indexes, reason=st.sampled_from(REASONS), failed=failures)
    def release(self, index: int, reason: str, failed: set[int]) -> None:
        key = self.request(index)
        self._release(key, self.model.requests[key].account, reason, failed)

    @precondition(lambda self: self.model.requests)
    @rule(index=indexes, account=accounts, prompt=st.integers(-1, 2), fee_percent=st.sampled_from((0, -1, 101)))
    def end_what_makes_no_sense(self, index: int, account: str, prompt: int, fee_percent: int) -> None:
        """For another account, with impossible numbers, of a job or a request that never was."""
        key = self.request(index)
        self._settle(key, 1, account, (prompt, 5, 5, 5, 5, 5), fee_percent)
        self._settle(key, 1, account, (5, 5, prompt, 5, 5, 5), fee_percent)
        self._settle(key, 1, account, (5, 5, 5, 5, 5, prompt), fee_percent)
        self._settle(key, 4, self.model.requests[key].account, (5, 5, 5, 5, 5, 5), 0)
        if account != self.model.requests[key].account:
            self._release(key, account, "failed", {1})
        self._settle(NEVER_ADMITTED, 1, account, (5, 5, 5, 5, 5, 5), 0)
        self._release(NEVER_ADMITTED, account, "failed", set())
        self._dispatch(NEVER_ADMITTED, 1, MACHINES[0], set())

    def _admit_new(self, account: str, limit: int | None, quote: Quote, *bounds: int) -> UUID | None:
        key = UUID(int=len(self.model.requests) + 1)
        self._admit(key, account, limit, quote, *bounds)
        return key if key in self.model.requests else None

    def _admit(
        self,
        key: UUID,
        account: str,
        limit: int | None,
        quote: Quote,
        prompt_bound: int,
        output_bound: int,
        units_bound: int,
    ) -> None:
        command = Admit(
            actor=Actor("consumer", account),
            correlation_id=str(key),
            request_id=key,
            account_id=account,
            key_id=_key(account, limit),
            key_limit=None if limit is None else KeyLimit(limit, "daily"),
            gateway_id="gateway",
            model="model",
            prompt_estimate=prompt_bound // 4,
            prompt_bound=prompt_bound,
            output_bound=output_bound,
            units_bound=units_bound,
            quote=quote,
            expires_at=BEGINNING + timedelta(hours=1),
        )
        unit_price = UNIT_PRICES[quote.unit](quote.unit_price)
        prices = (quote.input_price, quote.output_price, unit_price, quote.cache_read_price)
        bounds = (prompt_bound, output_bound, units_bound)
        asked = Request(account, prices, quote.minimum_charge, bounds, _key(account, limit), limit)
        result, expected = self.perform(
            command, lambda: self.model.admit(key, asked, self.ledger.now.date()), refusal=InsufficientFunds
        )
        if result is not None:
            assert result.reserved == expected
            assert result.account_id == self.model.requests[key].account

    def _dispatch(self, key: UUID, number: int, machine: tuple[str, str], failed: set[int]) -> None:
        name, owner = machine
        command = Dispatch(
            request_id=key,
            attempt=number,
            provider_id=f"session-{name}",
            machine_id=name,
            provider_key=f"key-{name}",
            provider_account_id=owner,
            failures=_failures(key, failed),
        )
        attempt = Attempt(f"session-{name}", name, owner)
        result, expected = self.perform(
            command, lambda: self.model.dispatch(key, number, attempt, failed), refusal=UnknownRequest
        )
        assert result is expected

    def _settle(self, key: UUID, number: int, account: str, claim: tuple[int, ...], fee_percent: int) -> None:
        prompt, completion, claimed_units, delivered, units_delivered, cached = claim
        command = Settle(
            request_id=key,
            account_id=account,
            job_id=_job(key, number),
            claimed_prompt_tokens=prompt,
            claimed_completion_tokens=completion,
            completion_bound=delivered,
            claimed_units=claimed_units,
            units_bound=units_delivered,
            claimed_cached_tokens=cached,
            fee_percent=fee_percent,
        )
        result, expected = self.perform(
            command,
            lambda: self.model.settle(
                key,
                number,
                account=account,
                claimed=(prompt, completion, claimed_units, cached),
                delivered=(delivered, units_delivered),
                fee_percent=fee_percent,
                today=self.ledger.now.date(),
            ),
        )
        _assert_end(key, result, expected)

    def _release(self, key: UUID, account: str, reason: str, failed: set[int]) -> None:
        command = Release(request_id=key, account_id=account, reason=reason, failures=_failures(key, failed))
        result, expected = self.perform(
            command, lambda: self.model.release(key, account=account, reason=reason, failed=failed)
        )
        _assert_end(key, result, expected)

    # --- machines ----------------------------------------------------------------------------------------------------

    @rule(
        machine=machines,
        session=st.sampled_from("st"),
        hardware=st.sampled_from(HARDWARE),
        owner=st.sampled_from(("", "ada", "ben")),
        opens=st.booleans(),
    )
    def connect(
        self, machine: tuple[str, str], session: str, hardware: dict[str, str | int], owner: str, opens: bool
    ) -> None:
        """A session opens or closes."""
        name = machine[0]
        if not opens:
            closing = CloseSession(
                machine_id=name, session_id=session, requests_served=1, tokens_generated=2, reason="gone"
            )
            self.perform(closing, lambda: self.model.close_session(name, session))
            return
        opening = OpenSession(
            machine_id=name,
            session_id=session,
            gateway_id="gateway",
            provider_key=f"key-{name}",
            hardware=hardware,
            models=("model",),
            account_id=owner,
        )
        result, expected = self.perform(
            opening, lambda: self.model.open_session(name, session, (hardware, ("model",)), owner)
        )
        assert result == expected

    # --- time passes -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.done)
    @rule(index=st.integers(0, 50))
    def repeat_an_old_command(self, index: int) -> None:
        """An intent that the broker delivers again, any time later."""
        command, first = self.done[index % len(self.done)]
        if isinstance(command, Admit | Settle | Release):
            self._repeat(command, first)
        elif isinstance(command, GrantCredit):
            marked = len(self.ledger.unit.events)
            assert self.ledger.run(command) == self.model.balance(command.account_id)
            assert len(self.ledger.unit.events) == marked, "a credit is granted once"

    @rule(lost=st.sampled_from((False, False, False, True)))
    def end_the_batch(self, lost: bool) -> None:
        if lost:
            self._lose_commit()
        else:
            self._commit()

    @rule()
    def let_a_day_pass(self) -> None:
        """What keys with a limit spent is forgotten, what they hold is not."""
        self._commit()
        self.ledger.let_time_pass(timedelta(days=1))

    def _commit(self) -> None:
        written = self.ledger.commit()
        self.tables.follow(written)
        self.saved_model = self.model.copy()
        self.saved_done = len(self.done)
        self.audited = 0
        self._check_replay(written)

    def _lose_commit(self) -> None:
        self.ledger.lose_commit()
        self.model = self.saved_model.copy()
        del self.done[self.saved_done :]
        self.shadow = replayed(self.ledger.events, KINDS)
        self.auditor = Auditor()
        self.auditor.read(self.ledger.events)
        self.audited = 0

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # a history that failed has said so already
            self._commit()

    # --- what must hold after every step -----------------------------------------------------------------------------

    @invariant()
    def everything_adds_up(self) -> None:
        new = reread(self.ledger.unit.events[self.audited :])
        self.audited += len(new)
        self.auditor.read(new)
        self.auditor.close()
        for event in new:
            if event.originator_id not in self.shadow:
                self.shadow[event.originator_id] = KINDS[event.TOPIC.partition(".")[0]](event.originator_id)
            event.evolve(self.shadow[event.originator_id])
        self._check_wallets()
        self._check_key_budgets()
        self._check_journal()
        self._check_requests()
        self._check_machines()
        self._check_cache()

    def _check_wallets(self) -> None:
        for account in ACCOUNTS:
            wallet = self.shadow.get(_id(Wallet, account), Wallet(_id(Wallet, account)))
            assert isinstance(wallet, Wallet)
            buckets = {bucket: getattr(wallet, bucket) for bucket in BUCKETS}
            assert buckets == self.model.wallet(account), "the buckets differ from the model"
            assert wallet.holds == self.model.holds(account), "the holds differ from the model"
            assert wallet.held == sum(wallet.holds.values()), "the holds have another sum"
            visible = (wallet.balance, wallet.withdrawable)
            assert visible == self.model.balance(account) == self.auditor.balance(account), "the balance differs"

    def _check_key_budgets(self) -> None:
        today = self.ledger.now.date()
        for account, limit in itertools.product(ACCOUNTS, KEYS):
            if limit is None:
                continue
            key_id = _key(account, limit)
            budget = self.shadow.get(_id(KeyBudget, key_id), KeyBudget(_id(KeyBudget, key_id)))
            assert isinstance(budget, KeyBudget)
            assert budget.holds == self.model.key_holds(key_id), "the holds of a key differ from the model"
            spent = budget.spent_in(today.isoformat())
            assert spent == self.model.spent.get((key_id, today), 0), "what a key spent differs from the model"
            assert spent + budget.held <= limit, "a key spends more than it may"

    def _check_journal(self) -> None:
        posted = {
            key: [(line.account_code, line.sub_account, line.direction, line.amount) for line in entry.postings]
            for key, entry in self.auditor.entries.items()
        }
        expected = {_entry_key(key): lines for key, lines in self.model.entries.items()}
        assert posted == expected, "the journal differs from the model"

    def _check_requests(self) -> None:
        assert len(self.auditor.clamped_claims) == self.model.anomalies
        for key, expected in self.model.requests.items():
            request = self.shadow[_id(InferenceRequest, str(key))]
            assert isinstance(request, InferenceRequest)
            assert request.jobs.keys() == {_job(key, number) for number in expected.attempts}
            assert request.failed == {_job(key, number) for number in expected.failed}
            _assert_end(key, request.end, expected.end)

    def _check_machines(self) -> None:
        for name, expected in self.model.machines.items():
            machine = self.shadow.get(_id(ProviderMachine, name), ProviderMachine(_id(ProviderMachine, name)))
            assert isinstance(machine, ProviderMachine)
            assert machine.description == expected.description
            assert (machine.account_id, machine.open_sessions) == (expected.owner, expected.sessions)

    def _check_cache(self) -> None:
        """Also after a failed command: what the cache holds is what the log says, no more."""
        for cached in self.ledger.cache._aggregates.values():
            expected = self.shadow.get(cached.id, type(cached)(cached.id))
            assert state(cached) == state(expected), "a cached aggregate differs from its events"

    def _check_replay(self, written: Written) -> None:
        """Reading the stored bytes from nothing, in one go, makes the same aggregates and tables."""
        assert [row.position for row in self.ledger.log] == list(range(1, len(self.ledger.log) + 1)), "14: gaps"
        recorded = self.ledger.events
        aggregates = replayed(recorded, KINDS)
        assert {key: state(one) for key, one in aggregates.items()} == {
            key: state(one) for key, one in self.shadow.items()
        }, "13: a replay differs"
        auditor = Auditor()
        auditor.read(recorded)
        auditor.close()
        again, live = rebuilt(list(enumerate(recorded, 1)), aggregates, written.recorded_at), self.tables
        assert again.balances == live.balances, "13: rebuilt balances differ"
        assert again.usage == live.usage, "13: rebuilt usage differs"
        assert again.open_requests == live.open_requests, "13: rebuilt open requests differ"
        assert again.earnings == live.earnings, "13: rebuilt earnings differ"
        assert again.journal_lines.keys() == live.journal_lines.keys(), "13: rebuilt journal lines differ"
        self._check_totals(auditor)

    def _check_totals(self, auditor: Auditor) -> None:
        usage: dict[str, tuple[int, int]] = {}
        for row in self.tables.usage.values():
            count, cost = usage.get(row[1], (0, 0))
            usage[row[1]] = (count + 1, cost + row[8])
        assert usage == auditor.usage_by_account(), "12: usage differs from the settlements"
        earned: dict[str, int] = {}
        for row in self.tables.earnings.values():
            earned[row[2]] = earned.get(row[2], 0) + row[5]
        assert earned == auditor.earnings_by_machine(), "12: earnings differ from the settlements"
        for account_id, row in self.tables.balances.items():
            assert (row[2], row[3]) == self.model.balance(account_id), "4: a balance row differs from its wallet"
            assert row[4] == sum(self.model.holds(account_id).values()), "4: a balance row differs from its wallet"
        still_open = {str(key) for key, request in self.model.requests.items() if request.end is None}
        assert self.tables.open_requests.keys() == still_open
        lines = self.tables.journal_lines.values()
        assert sum(row[10] for row in lines) == sum(row[11] for row in lines), "2: the trial balance differs"


@functools.cache
def _job(key: UUID, number: int) -> str:
    return str(job_id_of(key, number))


def _key(account: str, limit: int | None) -> str:
    return f"{account}-{limit or 'free'}"


@functools.cache
def _id(kind: type[Aggregate], key: str) -> UUID:
    return kind.id_of(key)


def _failures(key: UUID, numbers: set[int]) -> tuple[JobFailure, ...]:
    return tuple(JobFailure(_job(key, number), "timeout", 504) for number in sorted(numbers))


def _entry_key(key: str) -> str:
    """The model names a settlement by request and attempt, the ledger by job."""
    kind, name, *number = key.split(":")
    return f"settle:{_job(UUID(name), int(number[0]))}" if kind == "settle" else key


def _assert_end(key: UUID, found: RequestSettled | RequestReleased | None, expected: dict[str, Any] | None) -> None:
    end: dict[str, Any] | None = None
    if isinstance(found, RequestSettled):
        end = {
            "attempt": next(number for number in (1, 2, 3) if found.job_id == _job(key, number)),
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": found.completion_tokens,
            "units": found.units,
            "cached_tokens": found.cached_tokens,
            "cost": found.cost,
            "fee": found.fee,
            "provider_amount": found.provider_amount,
            "free": found.free,
        }
    elif isinstance(found, RequestReleased):
        end = {"reason": found.reason}
    assert end == expected, "the end of a request differs from the model"


CHECKS = settings(
    max_examples=2_000,
    stateful_step_count=20,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.timeout(600)
def test_no_history_of_commands_breaks_the_books() -> None:
    run_state_machine_as_test(LedgerMachine, settings=CHECKS)


# --- broken builds ---------------------------------------------------------------------------------------------------

BROKEN_BUILDS: tuple[tuple[Breakage, str], ...] = (
    (forgets_every_bound, "the end of a request differs|amounts and prices are never negative"),
    (rounds_the_fee_up, "the end of a request differs|must be refused"),
    (keeps_what_is_released, "the holds differ|must be refused"),
    (spends_earnings_first, "credits are spent before earnings"),
    (settles_twice, "a repeated command appends nothing|cannot cover|was posted twice"),
    (drops_a_journal_line, "an entry has at least two postings"),
    (pays_without_an_entry, "4: provider differs from account 2100|4: promotional differs from account 2005"),
    (forgets_whose_share_is_unclaimed, "the entry of a settlement says what the settlement says"),
    (admits_on_money_that_is_held, "the balance differs|must be refused"),
    (forgets_what_keys_hold, "a key spends more than it may|must be refused"),
    (leaves_a_trace_of_failures, "differ|must be refused"),
    (believes_what_was_not_written, "a cached aggregate differs from its events"),
    (lists_free_requests_as_usage, "usage differs from the settlements"),
    (stores_another_amount, "captured and released are what was placed|a hold is what was reserved"),
)
"""Each with what the checks say about it, or the product's own assertions where these come first."""


@pytest.mark.parametrize(
    ("breakage", "finding"), BROKEN_BUILDS, ids=[breakage.__name__ for breakage, _ in BROKEN_BUILDS]
)
def test_a_broken_build_is_found_out(breakage: Breakage, finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = settings(
        CHECKS,
        max_examples=1_000,
        derandomize=True,
        database=None,
        print_blob=False,
        phases=[Phase.generate],
        report_multiple_bugs=False,  # a second way to fail would come as a group, and only if there is time to find it
    )
    breakage(monkeypatch)
    with pytest.raises((AssertionError, InvariantViolated, ValueError), match=finding):
        run_state_machine_as_test(LedgerMachine, settings=few)
