from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domain import journal
from domain.errors import InvariantViolated
from domain.journal import BUCKET_CODES, CHART, JournalEntry, JournalEntryPosted, Posting, balanced, credit, debit
from domain.wallet import BUCKETS, Split
from tests.support.examples import record
from tests.support.memory_ledger import BEGINNING

amounts = st.integers(0, 10**9)


def totals(postings: tuple[Posting, ...]) -> dict[tuple[str, str], int]:
    """Debits minus credits by account."""
    found: Counter[tuple[str, str]] = Counter()
    for line in postings:
        found[line.account_code, line.sub_account] += line.signed
    return dict(found)


def settlement(split: Split, *, provider: int, platform: int, account: str = "owner") -> tuple[Posting, ...]:
    return journal.settlement(
        consumer="ada",
        split=split,
        provider_account=account,
        machine_id="machine",
        provider_amount=provider,
        platform_amount=platform,
    )


class TestBalanced:
    def test_lines_that_move_nothing_are_left_out(self) -> None:
        lines = balanced([debit("5000", "", 5), credit("2005", "ada", 5), credit("4000", "", 0)])
        assert lines == (debit("5000", "", 5), credit("2005", "ada", 5))

    @pytest.mark.parametrize(
        "postings",
        [
            [],
            [debit("5000", "", 5)],
            [debit("5000", "", 0), credit("2005", "ada", 0)],
            [debit("5000", "", 5), credit("2005", "ada", 4)],
            [debit("5000", "", 5), debit("2005", "ada", 5)],
            [debit("5000", "", -5), credit("2005", "ada", -5)],
            [debit("5000", "", 5), debit("4000", "", -2), credit("2005", "ada", 3)],
            [debit("9999", "", 5), credit("2005", "ada", 5)],
        ],
    )
    def test_anything_that_is_no_entry_is_refused(self, postings: list[Posting]) -> None:
        with pytest.raises(InvariantViolated):
            balanced(postings)

    @given(st.lists(st.tuples(st.sampled_from(sorted(CHART)), st.integers(1, 10**12)), min_size=1, max_size=6))
    def test_an_entry_sums_to_zero(self, lines: list[tuple[str, int]]) -> None:
        total = sum(amount for _, amount in lines)
        entry = balanced([*(debit(code, "", amount) for code, amount in lines), credit("4000", "", total)])
        assert sum(line.signed for line in entry) == 0


class TestPostings:
    def test_a_promotional_credit_is_an_expense_of_the_platform(self) -> None:
        assert totals(journal.promotional_credit("ada", 7)) == {("5000", ""): 7, ("2005", "ada"): -7}

    def test_the_worked_example_with_a_fee_of_five_percent(self) -> None:
        postings = settlement(Split(promotional=1_000), provider=950, platform=50)
        assert totals(postings) == {("2005", "ada"): 1_000, ("2100", "owner"): -950, ("4000", ""): -50}

    def test_without_a_fee_the_provider_gets_everything(self) -> None:
        postings = settlement(Split(purchased=1_000), provider=1_000, platform=0)
        assert totals(postings) == {("2000", "ada"): 1_000, ("2100", "owner"): -1_000}

    def test_with_the_whole_cost_as_fee_the_provider_has_no_line(self) -> None:
        postings = settlement(Split(purchased=1_000), provider=0, platform=1_000)
        assert totals(postings) == {("2000", "ada"): 1_000, ("4000", ""): -1_000}

    def test_an_unlinked_machines_share_waits_under_the_machine(self) -> None:
        postings = settlement(Split(promotional=1_000), provider=950, platform=50, account="")
        assert totals(postings) == {("2005", "ada"): 1_000, ("2190", "machine"): -950, ("4000", ""): -50}

    def test_each_bucket_has_a_liability_of_its_own(self) -> None:
        postings = settlement(Split(1, 2, 3, 4, 5), provider=15, platform=0)
        assert totals(postings) == {
            ("2005", "ada"): 1,
            ("2000", "ada"): 2,
            ("2120", "ada"): 3,
            ("2110", "ada"): 4,
            ("2100", "ada"): 5,
            ("2100", "owner"): -15,
        }

    @given(st.builds(Split, *[amounts] * 5), st.integers(0, 100), st.sampled_from(["owner", ""]))
    def test_every_settlement_balances(self, split: Split, percent: int, account: str) -> None:
        assume(split.total > 0)
        fee = split.total * percent // 100
        postings = settlement(split, provider=split.total - fee, platform=fee, account=account)
        assert sum(line.signed for line in postings) == 0
        assert sum(line.amount for line in postings if line.direction == "debit") == split.total

    @pytest.mark.parametrize(("provider", "platform"), [(949, 50), (1_050, -50), (0, 0)])
    def test_shares_that_are_not_the_cost_are_refused(self, provider: int, platform: int) -> None:
        with pytest.raises(InvariantViolated):
            settlement(Split(promotional=1_000), provider=provider, platform=platform)


class TestChart:
    def test_debits_raise_assets_and_expenses_only(self) -> None:
        normal = {code: account.debit_normal for code, account in CHART.items()}
        assert {code for code, is_debit in normal.items() if is_debit} == {
            code for code in CHART if code[0] in ("1", "5")
        }

    @pytest.mark.parametrize(("first_digit", "account_class"), [("1", "asset"), ("2", "liability"), ("4", "revenue")])
    def test_the_first_digit_is_the_class(self, first_digit: str, account_class: str) -> None:
        codes = [code for code in CHART if code.startswith(first_digit)]
        assert codes
        assert {CHART[code].account_class for code in codes} == {account_class}

    def test_every_bucket_is_mirrored_by_a_liability(self) -> None:
        assert BUCKET_CODES.keys() == set(BUCKETS)
        assert {CHART[code].account_class for code in BUCKET_CODES.values()} == {"liability"}
        assert len(set(BUCKET_CODES.values())) == len(BUCKETS)

    @pytest.mark.parametrize("make", [debit, credit])
    def test_a_posting_knows_its_direction(self, make: Callable[[str, str, int], Posting]) -> None:
        line = make("4000", "", 5)
        assert line.signed == (5 if line.direction == "debit" else -5)


def test_an_entry_is_written_once() -> None:
    entry = JournalEntry(JournalEntry.id_of("settle:job"))
    payload = {
        "entry_key": "settle:job",
        "kind": "settlement",
        "effective_at": BEGINNING,
        "postings": (debit("5000", "", 5), credit("2005", "ada", 5)),
        "reference": "job",
        "metadata": {},
        "reverses_entry_id": None,
    }
    record(entry, JournalEntryPosted, **payload)
    entry.check()
    record(entry, JournalEntryPosted, **payload)
    with pytest.raises(InvariantViolated, match="settle:job"):
        entry.check()
