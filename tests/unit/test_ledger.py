from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as holds_for
from hypothesis import strategies as st

from domain.accounts import Account
from domain.errors import Conflict, InsufficientFunds, UnknownRequest
from domain.kinds import IMAGE
from domain.ledger import Balance, CloseSession, Command, OpenAccount, OpenSession, Release
from domain.machines import ProviderMachine
from domain.pricing import Quote, quote_for
from domain.requests import InferenceRequest, JobFailure, RequestReleased, RequestSettled, job_id_of
from domain.wallet import Wallet
from tests.support.examples import REQUEST, admit, dispatch, grant, settle
from tests.support.memory_ledger import MemoryLedger

FIRST_JOB = str(job_id_of(REQUEST, 1))


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger(cache_max=2)


def given(ledger: MemoryLedger, *commands: Command[Any]) -> MemoryLedger:
    for command in commands:
        ledger.execute(command)
    return ledger


def topics(ledger: MemoryLedger, *, since: int = 0) -> list[str]:
    return [row.topic.partition(".")[2] for row in ledger.log[since:]]


def release(account: str = "ada", reason: str = "failed", failures: tuple[JobFailure, ...] = ()) -> Release:
    return Release(request_id=REQUEST, account_id=account, reason=reason, failures=failures)


def wallet(ledger: MemoryLedger, account: str) -> Wallet:
    return ledger.state_of(Wallet, account)


class TestAccounts:
    def test_an_account_is_opened_once(self, ledger: MemoryLedger) -> None:
        assert ledger.execute(OpenAccount(account_id="ada")) is True
        assert ledger.execute(OpenAccount(account_id="ada", kind="key")) is False
        assert topics(ledger) == ["AccountOpened"]
        assert ledger.state_of(Account, "ada").account_id == "ada"


class TestCredit:
    def test_a_credit_moves_the_wallet_and_the_journal_together(self, ledger: MemoryLedger) -> None:
        assert ledger.execute(grant("ada", 500)) == Balance(500, 0)
        assert topics(ledger) == ["PromotionalCreditGranted", "JournalEntryPosted"]

    def test_the_same_reference_is_never_granted_twice(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 500))
        assert ledger.execute(grant("ada", 900)) == Balance(500, 0)
        assert len(ledger.log) == 2

    def test_another_reference_is_another_credit(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 500, "first"))
        assert ledger.execute(grant("ada", 250, "second")) == Balance(750, 0)

    @pytest.mark.parametrize("amount", [0, -1])
    def test_a_credit_of_nothing_is_refused(self, ledger: MemoryLedger, amount: int) -> None:
        with pytest.raises(Conflict):
            ledger.execute(grant("ada", amount))
        assert ledger.log == []


class TestAdmission:
    def test_the_worst_case_is_held_before_any_work(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000))
        admitted = ledger.execute(admit("ada", prompt=1_000, output=2_000))
        assert admitted.reserved == 3_000
        assert (wallet(ledger, "ada").balance, wallet(ledger, "ada").holds) == (2_000, {str(REQUEST): 3_000})
        assert topics(ledger, since=2) == ["HoldPlaced", "RequestAdmitted"]

    def test_a_balance_that_is_just_enough_is_enough(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 2_000), admit("ada"))
        assert wallet(ledger, "ada").balance == 0

    def test_a_balance_that_is_one_short_is_refused_and_leaves_no_trace(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 1_999))
        with pytest.raises(InsufficientFunds):
            ledger.execute(admit("ada"))
        assert len(ledger.log) == 2
        assert wallet(ledger, "ada").balance == 1_999

    def test_the_default_bound_needs_more_than_a_thousand(self, ledger: MemoryLedger) -> None:
        # Given a balance of 1,000, a model at the default pair and the default bound of 8,192 output tokens,
        given(ledger, grant("ada", 1_000))
        quote = quote_for("acme/without-a-price")
        # when the request is admitted, then it is refused and the balance stays.
        with pytest.raises(InsufficientFunds):
            ledger.execute(admit("ada", prompt=100, output=8_192, quote=quote))
        assert wallet(ledger, "ada").balance == 1_000

    def test_what_other_requests_hold_cannot_be_held_again(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 3_000), admit("ada"))
        with pytest.raises(InsufficientFunds):
            ledger.execute(admit("ada", request_id=job_id_of(REQUEST, 99)))

    def test_a_second_admission_finds_the_first_whatever_it_asks_for(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000))
        first = ledger.execute(admit("ada"))
        assert ledger.execute(admit("ada")) == first
        assert ledger.execute(admit("ben", prompt=9, output=9)) == first
        assert len(ledger.log) == 4

    def test_the_hold_covers_the_minimum_charge(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 100))
        assert ledger.execute(admit("ada", prompt=0, output=1)).reserved == 100


class TestDispatch:
    def test_an_attempt_is_recorded_with_the_quote_of_the_admission(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"))
        assert ledger.execute(dispatch()) is True
        job = ledger.state_of(InferenceRequest, str(REQUEST)).jobs[FIRST_JOB]
        assert (job.attempt, job.machine_id, job.provider_account_id) == (1, "machine-1", "owner")
        assert job.quote == admit("ada").quote

    def test_a_message_that_comes_twice_records_once(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        recorded = len(ledger.log)
        assert ledger.execute(dispatch()) is True
        assert len(ledger.log) == recorded

    def test_an_attempt_that_went_elsewhere_must_not_be_sent_again(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(provider_id="here"))
        assert ledger.execute(dispatch(provider_id="there")) is False
        assert ledger.state_of(InferenceRequest, str(REQUEST)).jobs[FIRST_JOB].provider_id == "here"

    def test_a_next_attempt_says_why_the_one_before_failed(self, ledger: MemoryLedger) -> None:
        failure = JobFailure(FIRST_JOB, "timeout", 504)
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(1), dispatch(2, failures=(failure,)))
        assert topics(ledger, since=4) == ["JobDispatched", "JobFailed", "JobDispatched"]
        assert ledger.state_of(InferenceRequest, str(REQUEST)).failed == {FIRST_JOB}

    def test_a_failure_is_recorded_once_and_only_of_a_job_that_was(self, ledger: MemoryLedger) -> None:
        failures = (JobFailure(FIRST_JOB, "timeout", 504), JobFailure("unknown", "timeout", 504))
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(1), dispatch(2, failures=failures))
        given(ledger, dispatch(3, failures=failures), release(failures=failures))
        assert topics(ledger).count("JobFailed") == 1

    def test_nothing_is_dispatched_after_the_end(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), release())
        recorded = len(ledger.log)
        assert ledger.execute(dispatch()) is False
        assert len(ledger.log) == recorded

    def test_a_request_that_was_never_admitted_is_unknown(self, ledger: MemoryLedger) -> None:
        with pytest.raises(UnknownRequest):
            ledger.execute(dispatch())


class TestSettlement:
    def test_a_completion_captures_its_cost_and_returns_the_rest(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        settled = ledger.execute(settle("ada", 600, 400))
        assert isinstance(settled, RequestSettled)
        assert (settled.cost, settled.provider_amount, settled.fee, settled.clamped) == (1_000, 1_000, 0, False)
        assert (wallet(ledger, "ada").balance, wallet(ledger, "ada").holds) == (4_000, {})
        assert (wallet(ledger, "owner").balance, wallet(ledger, "owner").withdrawable) == (1_000, 1_000)
        expected = ["JobCompleted", "RequestSettled", "HoldCaptured", "EarningCredited", "JournalEntryPosted"]
        assert topics(ledger, since=5) == expected

    def test_the_worked_example_with_a_fee(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        settled = ledger.execute(settle("ada", 600, 400, fee_percent=5))
        assert isinstance(settled, RequestSettled)
        assert (settled.cost, settled.provider_amount, settled.fee, settled.platform_amount) == (1_000, 950, 50, 50)
        assert wallet(ledger, "owner").balance == 950

    def test_a_fee_of_everything_leaves_the_provider_without_an_earning(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(), settle("ada", fee_percent=100))
        assert "EarningCredited" not in topics(ledger)
        assert wallet(ledger, "owner").version == 0

    def test_an_empty_answer_costs_the_minimum(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        settled = ledger.execute(settle("ada", 0, 0))
        assert isinstance(settled, RequestSettled)
        assert settled.cost == 100

    def test_ones_own_machine_serves_free(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(owner="ada"))
        settled = ledger.execute(settle("ada", 600, 400, fee_percent=5))
        assert isinstance(settled, RequestSettled)
        assert (settled.free, settled.cost, settled.fee, settled.provider_amount) == (True, 0, 0, 0)
        assert wallet(ledger, "ada").balance == 5_000
        assert topics(ledger, since=5) == ["JobCompleted", "RequestSettled", "HoldCaptured"]

    @pytest.mark.parametrize(
        ("claimed", "delivered", "charged", "cost"),
        [
            (2_097_152, 2_097_152, 2_097_152, 3_000),
            (2_097_152, 1_048_576, 1_048_576, 1_500),
            (9_999_999, 9_999_999, 2_097_152, 3_000),
            (1_398_102, 2_097_152, 1_398_102, 2_000),
            (1_398_101, 2_097_152, 1_398_101, 1_999),
            (0, 2_097_152, 0, 100),
        ],
    )
    def test_images_are_charged_by_their_pixels_within_both_bounds(
        self, ledger: MemoryLedger, claimed: int, delivered: int, charged: int, cost: int
    ) -> None:
        asked = admit("ada", 0, 0, quote=quote_for("flux", IMAGE), units_bound=2_097_152)
        given(ledger, grant("ada", 5_000), asked, dispatch())
        assert wallet(ledger, "ada").balance == 2_000
        settled = ledger.execute(settle("ada", 0, 0, claimed_units=claimed, units_bound=delivered))
        assert isinstance(settled, RequestSettled)
        assert (settled.unit, settled.units, settled.cost) == ("pixel", charged, cost)
        assert wallet(ledger, "ada").balance == 5_000 - cost
        assert ("UsageClaimClamped" in topics(ledger)) is (claimed != charged)

    def test_an_unlinked_machines_share_is_owed_to_the_machine(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(owner=""), settle("ada"))
        assert "EarningCredited" not in topics(ledger)
        entry = ledger.events[-1]
        assert ("2190", "machine-1", 1_000) in [
            (line.account_code, line.sub_account, line.amount) for line in entry.postings
        ]

    @pytest.mark.parametrize(
        ("prompt", "completion", "delivered", "charged"),
        [
            (1_000_000, 0, 0, (1_000, 0)),
            (0, 1_000_000, 1_000_000, (0, 1_000)),
            (0, 500, 20, (0, 20)),
            (2_000_000, 2_000_000, 2_000_000, (1_000, 1_000)),
        ],
    )
    def test_a_claim_over_its_bound_is_clamped_and_recorded(
        self, ledger: MemoryLedger, prompt: int, completion: int, delivered: int, charged: tuple[int, int]
    ) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        settled = ledger.execute(settle("ada", prompt, completion, completion_bound=delivered))
        assert isinstance(settled, RequestSettled)
        assert (settled.prompt_tokens, settled.completion_tokens) == charged
        assert settled.cost <= settled.reserved
        assert topics(ledger, since=5)[0] == "UsageClaimClamped"

    @pytest.mark.parametrize(
        ("prompt", "cached", "charged", "cost"),
        [
            (600, 0, 0, 1_000),
            (600, 400, 400, 200 + 200 + 400),
            (600, 600, 600, 300 + 400),
            (600, 601, 600, 300 + 400),
            (600, 2**53, 600, 300 + 400),
            (2_000, 900, 900, 100 + 450 + 400),
            (2_000, 1_500, 1_000, 500 + 400),
        ],
    )
    def test_what_a_machine_remembered_of_the_prompt_costs_less_and_is_never_more_than_the_prompt(
        self, ledger: MemoryLedger, prompt: int, cached: int, charged: int, cost: int
    ) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        assert wallet(ledger, "ada").balance == 3_000  # the hold expects no memory
        settled = ledger.execute(settle("ada", prompt, 400, claimed_cached_tokens=cached))
        assert isinstance(settled, RequestSettled)
        assert (settled.cached_tokens, settled.cost) == (charged, cost)
        assert (wallet(ledger, "ada").balance, wallet(ledger, "owner").balance) == (5_000 - cost, cost)
        assert ("UsageClaimClamped" in topics(ledger)) is (cached != charged or prompt > 1_000)

    def test_what_was_remembered_counts_for_nothing_on_ones_own_machine(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(owner="ada"))
        settled = ledger.execute(settle("ada", claimed_cached_tokens=500))
        assert isinstance(settled, RequestSettled)
        assert (settled.free, settled.cost, settled.cached_tokens) == (True, 0, 500)

    def test_less_than_nothing_cannot_have_been_remembered(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        recorded = len(ledger.log)
        with pytest.raises(Conflict):
            ledger.execute(settle("ada", claimed_cached_tokens=-1))
        assert len(ledger.log) == recorded

    @holds_for(
        prompt=st.integers(0, 2_000),
        completion=st.integers(0, 2_000),
        cached=st.integers(0, 3_000),
        quote=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)).map(
            lambda prices: Quote(max(prices[:2]), prices[2], min(prices[:2]), "built_in", 1, 100)
        ),
        fee_percent=st.integers(0, 100),
    )
    def test_a_memory_moves_no_money_from_anybody_else(
        self, prompt: int, completion: int, cached: int, quote: Quote, fee_percent: int
    ) -> None:
        """The consumer keeps what provider and platform go without, to the last micro-USD."""
        ends, owned = [], []
        for claimed in (0, cached):
            ledger = MemoryLedger()
            given(ledger, grant("ada", 10_000), admit("ada", quote=quote), dispatch())
            command = settle(
                "ada", prompt, completion, claimed_cached_tokens=claimed, fee_percent=fee_percent, completion_bound=900
            )
            ends.append(ledger.execute(command))
            owned.append((wallet(ledger, "ada").balance, wallet(ledger, "owner").balance))
        without, remembered = ends
        assert isinstance(without, RequestSettled)
        assert isinstance(remembered, RequestSettled)
        assert remembered.reserved == without.reserved
        assert min(100, without.cost) <= remembered.cost <= without.cost <= without.reserved
        assert remembered.provider_amount <= without.provider_amount
        for end, (consumer, provider) in zip((without, remembered), owned, strict=True):
            assert consumer + provider + end.platform_amount == 10_000

    def test_a_claim_at_its_bound_is_no_anomaly(self, ledger: MemoryLedger) -> None:
        given(
            ledger, grant("ada", 5_000), admit("ada"), dispatch(), settle("ada", 1_000, 1_000, completion_bound=1_000)
        )
        assert "UsageClaimClamped" not in topics(ledger)

    def test_a_later_attempt_is_the_one_that_is_paid(self, ledger: MemoryLedger) -> None:
        failure = JobFailure(FIRST_JOB, "timeout", 504)
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(1, owner="slow"))
        given(ledger, dispatch(2, owner="fast", failures=(failure,)), settle("ada", attempt=2))
        assert (wallet(ledger, "slow").version, wallet(ledger, "fast").balance) == (0, 1_000)

    def test_a_settlement_records_what_became_of_the_other_attempts(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(1, owner="slow"), dispatch(2, owner="fast"))
        overtaken = JobFailure(FIRST_JOB, "overtaken", 499)
        given(ledger, settle("ada", attempt=2, failures=(overtaken,)))
        assert (wallet(ledger, "slow").version, wallet(ledger, "fast").balance) == (0, 1_000)
        assert ledger.state_of(InferenceRequest, str(REQUEST)).failed == {FIRST_JOB}

    def test_an_attempt_that_failed_is_not_paid(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        recorded = len(ledger.log)
        with pytest.raises(Conflict):
            ledger.execute(settle("ada", failures=(JobFailure(FIRST_JOB, "overtaken", 499),)))
        assert len(ledger.log) == recorded

    def test_a_second_settlement_finds_the_first(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        first = ledger.execute(settle("ada", 600, 400))
        recorded = len(ledger.log)
        assert ledger.execute(settle("ada", 600, 400)) == first
        assert ledger.execute(settle("ada", 1, 1, fee_percent=50)) == first
        assert ledger.execute(release()) == first
        assert len(ledger.log) == recorded

    @pytest.mark.parametrize("command", [settle("ada"), release()])
    def test_a_request_that_was_never_admitted_is_unknown(self, ledger: MemoryLedger, command: Command[Any]) -> None:
        with pytest.raises(UnknownRequest):
            ledger.execute(command)

    def test_a_job_that_was_never_dispatched_is_unknown(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        with pytest.raises(UnknownRequest):
            ledger.execute(settle("ada", attempt=2))

    def test_a_settlement_for_another_account_fails_without_a_trace(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), grant("ben", 5_000), admit("ada"), dispatch())
        recorded = len(ledger.log)
        with pytest.raises(UnknownRequest):
            ledger.execute(settle("ben"))
        assert len(ledger.log) == recorded
        assert ledger.state_of(InferenceRequest, str(REQUEST)).end is None
        assert isinstance(ledger.execute(settle("ada")), RequestSettled)

    def test_the_completion_of_an_attempt_that_was_given_up_charges_nothing(self, ledger: MemoryLedger) -> None:
        # Given a first attempt that is recorded as failed, and a second one on its way,
        failure = JobFailure(FIRST_JOB, "timeout", 504)
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(1), dispatch(2, failures=(failure,)))
        # when the first one completes after all, then its late result changes nothing,
        with pytest.raises(UnknownRequest):
            ledger.execute(settle("ada", attempt=1))
        assert "JobCompleted" not in topics(ledger)
        # and the second attempt is the one that is paid.
        assert wallet(ledger, "ada").held == 2_000
        assert isinstance(ledger.execute(settle("ada", attempt=2)), RequestSettled)

    @pytest.mark.parametrize("owner", ["owner", "ada"], ids=["charged", "free"])
    @pytest.mark.parametrize(("prompt", "completion"), [(-1, 5), (5, -1)])
    def test_a_negative_claim_is_refused(self, ledger: MemoryLedger, owner: str, prompt: int, completion: int) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(owner=owner))
        recorded = len(ledger.log)
        with pytest.raises(Conflict):
            ledger.execute(settle("ada", prompt, completion))
        assert len(ledger.log) == recorded


class TestRelease:
    @pytest.mark.parametrize("reason", ["rejected", "cancelled", "failed", "expired", "no_terminal"])
    def test_a_release_returns_the_whole_hold(self, ledger: MemoryLedger, reason: str) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        released = ledger.execute(release(reason=reason))
        assert isinstance(released, RequestReleased)
        assert released.reason == reason
        assert (wallet(ledger, "ada").balance, wallet(ledger, "ada").holds) == (5_000, {})
        assert topics(ledger, since=5) == ["HoldReleased", "RequestReleased"]

    def test_a_request_that_never_left_can_be_released(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), release(reason="rejected"))
        assert wallet(ledger, "ada").balance == 5_000

    def test_a_release_records_why_the_attempts_failed(self, ledger: MemoryLedger) -> None:
        failure = JobFailure(FIRST_JOB, "machine_error", 503)
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch(), release(failures=(failure,)))
        assert topics(ledger, since=5) == ["JobFailed", "HoldReleased", "RequestReleased"]

    def test_a_late_completion_finds_the_release(self, ledger: MemoryLedger) -> None:
        given(ledger, grant("ada", 5_000), admit("ada"), dispatch())
        first = ledger.execute(release(reason="expired"))
        recorded = len(ledger.log)
        assert ledger.execute(settle("ada")) == first
        assert ledger.execute(release(reason="failed")) == first
        assert len(ledger.log) == recorded


class TestSessions:
    @staticmethod
    def opening(session: str = "one", account: str = "", chip: str = "M4") -> OpenSession:
        return OpenSession(
            machine_id="machine",
            session_id=session,
            gateway_id="gateway",
            provider_key="key",
            hardware={"chip_name": chip},
            models=("model",),
            account_id=account,
        )

    @staticmethod
    def closing(session: str = "one") -> CloseSession:
        return CloseSession(
            machine_id="machine", session_id=session, requests_served=3, tokens_generated=70, reason="connection lost"
        )

    def test_a_new_machine_registers_before_its_first_session(self, ledger: MemoryLedger) -> None:
        given(ledger, self.opening())
        assert topics(ledger) == ["MachineRegistered", "ProviderSessionOpened"]

    def test_a_known_machine_only_opens_a_session(self, ledger: MemoryLedger) -> None:
        given(ledger, self.opening(), self.closing(), self.opening("two"))
        assert topics(ledger, since=2) == ["ProviderSessionClosed", "ProviderSessionOpened"]

    def test_a_machine_that_describes_itself_anew_registers_anew(self, ledger: MemoryLedger) -> None:
        given(ledger, self.opening(), self.opening("two", chip="M5"))
        assert topics(ledger, since=2) == ["MachineRegistered", "ProviderSessionOpened"]
        assert ledger.state_of(ProviderMachine, "machine").description == ({"chip_name": "M5"}, ("model",))

    def test_a_machine_earns_for_the_account_of_its_latest_token(self, ledger: MemoryLedger) -> None:
        assert ledger.execute(self.opening()) == ""
        assert ledger.execute(self.opening("two", account="ada")) == "ada"
        assert ledger.execute(self.opening("three", account="ada")) == "ada"
        assert ledger.execute(self.opening("four", account="ben")) == "ben"
        assert topics(ledger).count("MachineLinked") == 2

    def test_a_connection_without_a_token_leaves_the_machine_with_its_account(self, ledger: MemoryLedger) -> None:
        given(ledger, self.opening(account="ada"))
        assert ledger.execute(self.opening("two")) == "ada"
        assert ledger.state_of(ProviderMachine, "machine").account_id == "ada"

    def test_opening_a_session_again_returns_the_account_and_links_nothing(self, ledger: MemoryLedger) -> None:
        given(ledger, self.opening(account="ada"))
        assert ledger.execute(self.opening(account="ben")) == "ada"
        assert topics(ledger).count("MachineLinked") == 1

    def test_a_session_opens_and_closes_once(self, ledger: MemoryLedger) -> None:
        given(ledger, self.opening(), self.opening(), self.closing(), self.closing(), self.closing("never opened"))
        assert topics(ledger) == ["MachineRegistered", "ProviderSessionOpened", "ProviderSessionClosed"]
        assert ledger.state_of(ProviderMachine, "machine").open_sessions == set()


def test_ten_settled_and_ten_abandoned_requests_cost_the_sum_of_their_usage(ledger: MemoryLedger) -> None:
    given(ledger, grant("ada", 100_000))
    cost = 0
    for number in range(20):
        request_id = job_id_of(REQUEST, 100 + number)
        given(ledger, admit("ada", request_id=request_id), dispatch(request_id=request_id))
        if number % 2:
            given(ledger, Release(request_id=request_id, account_id="ada", reason="cancelled"))
        else:
            job_id = str(job_id_of(request_id, 1))
            settled = ledger.execute(settle("ada", 37 * number, 11 * number, request_id=request_id, job_id=job_id))
            assert isinstance(settled, RequestSettled)
            cost += settled.cost
    assert wallet(ledger, "ada").balance == 100_000 - cost
    assert wallet(ledger, "owner").balance == cost
    assert wallet(ledger, "ada").held == 0
