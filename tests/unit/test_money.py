from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.money import (
    AMOUNT_MICRO_USD_MAX,
    MICRO_USD_PER_USD,
    TOKENS_PER_PRICE,
    NotAnAmount,
    format_usd,
    metered_cost_micro_usd,
    parse_usd,
    percent_of,
)

amounts = st.integers(0, 10**15)


class TestTokenCost:
    @pytest.mark.parametrize(
        ("tokens", "price", "cost"),
        [
            (0, 65_000, 0),
            (1, 65_000, 0),
            (15, 65_000, 0),
            (16, 65_000, 1),
            (32, 65_000, 2),
            (900, 65_000, 58),
            (2_100, 200_000, 420),
            (1_000_000, 1, 1),
            (999_999, 1, 0),
        ],
    )
    def test_a_kind_of_token_is_rounded_down(self, tokens: int, price: int, cost: int) -> None:
        assert metered_cost_micro_usd(tokens, price, per=TOKENS_PER_PRICE) == cost

    @given(st.integers(0, 10**9), st.integers(0, 10**9))
    def test_the_cost_is_the_exact_floor_even_where_a_float_is_not(self, tokens: int, price: int) -> None:
        exact = (Decimal(tokens) * Decimal(price) / 10**6).to_integral_value(ROUND_FLOOR)
        assert metered_cost_micro_usd(tokens, price, per=TOKENS_PER_PRICE) == int(exact)

    @given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**7))
    def test_more_tokens_never_cost_less(self, tokens: int, more: int, price: int) -> None:
        assert metered_cost_micro_usd(tokens + more, price, per=TOKENS_PER_PRICE) >= metered_cost_micro_usd(
            tokens, price, per=TOKENS_PER_PRICE
        )

    @pytest.mark.parametrize(("tokens", "price"), [(-1, 5), (5, -1), (-1, -1)])
    def test_negative_numbers_are_refused_because_the_floor_would_grow(self, tokens: int, price: int) -> None:
        with pytest.raises(ValueError, match="never negative"):
            metered_cost_micro_usd(tokens, price, per=TOKENS_PER_PRICE)


class TestPercentages:
    @pytest.mark.parametrize(
        ("amount", "percent", "share"), [(1_000, 5, 50), (999, 5, 49), (19, 5, 0), (100, 0, 0), (7, 100, 7)]
    )
    def test_a_share_is_rounded_down(self, amount: int, percent: int, share: int) -> None:
        assert percent_of(amount, percent) == share

    @given(amounts, st.integers(0, 100))
    def test_two_shares_add_up_exactly(self, amount: int, percent: int) -> None:
        share = percent_of(amount, percent)
        assert 0 <= share <= amount
        assert share + (amount - share) == amount
        assert share * 100 <= amount * percent < (share + 1) * 100

    @pytest.mark.parametrize(("amount", "percent"), [(-1, 5), (5, -1), (5, 101)])
    def test_what_is_no_share_is_refused(self, amount: int, percent: int) -> None:
        with pytest.raises(ValueError, match="0 to 100 percent"):
            percent_of(amount, percent)


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "amount"),
        [
            ("5", 5_000_000),
            ("12.50", 12_500_000),
            ("19.99", 19_990_000),
            ("0.29", 290_000),
            ("+3", 3_000_000),
            ("0.000001", 1),
            ("007", 7_000_000),
            (" 1.5 ", 1_500_000),
            ("999999.99", 999_999_990_000),
        ],
    )
    def test_a_decimal_is_read_exactly(self, text: str, amount: int) -> None:
        assert parse_usd(text) == amount

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "NaN",
            "nan",
            "inf",
            "Infinity",
            "-1",
            "--1",
            "++1",
            "1e3",
            "1E3",
            "1_000",
            "1,5",
            "1.",
            ".5",
            "1.5.0",
            "0x10",
            "$5",
            "5 USD",
            "1 000",
            "½",
            "1.0000001",
            "1234567890123",
        ],
    )
    def test_anything_but_a_plain_decimal_is_refused(self, text: str) -> None:
        with pytest.raises(NotAnAmount):
            parse_usd(text)

    @pytest.mark.parametrize("text", ["٣", "１２", "1.٥", "௧"])
    def test_digits_of_other_scripts_are_refused(self, text: str) -> None:
        with pytest.raises(NotAnAmount):
            parse_usd(text)

    @pytest.mark.parametrize(("text", "digits"), [("1.234", 2), ("1.5", 0), ("0.1234567", 6)])
    def test_more_decimals_than_allowed_are_refused_and_never_cut(self, text: str, digits: int) -> None:
        with pytest.raises(NotAnAmount):
            parse_usd(text, fraction_digits_max=digits)

    def test_as_many_decimals_as_allowed_are_read(self) -> None:
        assert parse_usd("1.23", fraction_digits_max=2) == 1_230_000
        assert parse_usd("1", fraction_digits_max=0) == 1_000_000

    def test_a_refusal_quotes_no_more_than_the_beginning(self) -> None:
        with pytest.raises(NotAnAmount) as refusal:
            parse_usd("x" * 10_000)
        assert len(str(refusal.value)) < 150

    @given(st.integers(0, 10**12 - 1), st.integers(0, 999_999))
    def test_the_largest_amount_stays_far_inside_of_64_bits(self, whole: int, fraction: int) -> None:
        assert 0 <= parse_usd(f"{whole}.{fraction:06d}") < AMOUNT_MICRO_USD_MAX < 2**63


class TestFormatting:
    @pytest.mark.parametrize(
        ("amount", "text"),
        [
            (0, "0.000000"),
            (4_750_000, "4.750000"),
            (3_120_450, "3.120450"),
            (1, "0.000001"),
            (MICRO_USD_PER_USD, "1.000000"),
            (-1, "-0.000001"),
            (-2_500_000, "-2.500000"),
        ],
    )
    def test_an_amount_has_exactly_six_decimals(self, amount: int, text: str) -> None:
        assert format_usd(amount) == text

    @given(st.integers(0, 10**18 - 1))
    def test_what_was_formatted_is_parsed_to_the_same_amount(self, amount: int) -> None:
        assert parse_usd(format_usd(amount)) == amount

    @given(st.integers(-(10**18), 10**18))
    def test_a_text_is_the_exact_decimal(self, amount: int) -> None:
        assert Decimal(format_usd(amount)) * MICRO_USD_PER_USD == amount
