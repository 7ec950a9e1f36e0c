from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.kinds import EMBEDDING
from domain.pricing import (
    BUILT_IN_PRICES,
    DEFAULT_PRICE,
    DEFAULT_PRICES,
    MINIMUM_CHARGE_MICRO_USD,
    Price,
    Quote,
    batch_quote,
    cache_read_price_of,
    quote_for,
)

GEMMA = "mlx-community/gemma-4-26b-a4b-it-8bit"
QWEN_27B = "qwen3.5-27b-claude-opus-8bit"
QWEN_122B = "mlx-community/Qwen3.5-122B-A10B-8bit"
MINIMAX = "mlx-community/MiniMax-M2.5-8bit"
TRINITY = "mlx-community/Trinity-Mini-8bit"

usages = st.tuples(st.integers(0, 10**7), st.integers(0, 10**7))


@st.composite
def any_quotes(draw: st.DrawFn) -> Quote:
    """With any price of remembered tokens that the rules allow, at both rates."""
    input_price = draw(st.integers(0, 10**7))
    quote = Quote(
        input_price=input_price,
        output_price=draw(st.integers(0, 10**7)),
        cache_read_price=draw(st.integers(0, input_price)),
        source="built_in",
        book_version=1,
        minimum_charge=draw(st.sampled_from((0, 100))),
    )
    return draw(st.sampled_from((quote, batch_quote(quote))))


@st.composite
def remembered_usages(draw: st.DrawFn) -> tuple[int, int, int]:
    """Prompt and completion tokens, and how many of the prompt's were remembered."""
    prompt = draw(st.integers(0, 10**7))
    return prompt, draw(st.integers(0, 10**7)), draw(st.integers(0, prompt))


class TestTheCostTable:
    @pytest.mark.parametrize(
        ("model", "prompt", "completion", "cost"),
        [
            (TRINITY, 1_000_000, 1_000_000, 98_000),
            (MINIMAX, 1_000_000, 0, 60_000),
            (QWEN_122B, 1_000_000, 1_000_000, 1_170_000),
            ("a/model-without-a-price", 0, 0, 100),
            (GEMMA, 32, 210, 100),
            (GEMMA, 900, 2_100, 478),
        ],
    )
    def test_a_usage_costs_what_the_table_says(self, model: str, prompt: int, completion: int, cost: int) -> None:
        assert quote_for(model).charge_micro_usd(prompt, completion) == cost

    def test_the_two_kinds_of_token_are_rounded_apart(self) -> None:
        # Given a price of half a micro-dollar for a token of each kind,
        quote = msgspec.structs.replace(quote_for(GEMMA), input_price=500_000, output_price=500_000, minimum_charge=0)
        # when one token of each kind is used, then nothing is owed: rounding the sum would owe 1.
        assert quote.charge_micro_usd(1, 1) == 0
        assert quote.charge_micro_usd(2, 0) == 1

    def test_the_minimum_applies_to_the_sum_and_not_to_each_kind(self) -> None:
        quote = quote_for(GEMMA)
        assert quote.charge_micro_usd(900, 210) == 58 + 42
        assert quote.charge_micro_usd(885, 210) == 100  # 57 + 42 is one below


class TestQuotes:
    @pytest.mark.parametrize(
        ("model", "price"),
        [
            (GEMMA, Price(65_000, 200_000)),
            (QWEN_27B, Price(100_000, 780_000)),
            (QWEN_122B, Price(130_000, 1_040_000)),
            (MINIMAX, Price(60_000, 500_000)),
            (TRINITY, Price(23_000, 75_000)),
        ],
    )
    def test_a_model_of_the_table_has_its_own_price(self, model: str, price: Price) -> None:
        quote = quote_for(model)
        assert (quote.input_price, quote.output_price, quote.source) == (
            price.input_price,
            price.output_price,
            "built_in",
        )
        assert BUILT_IN_PRICES[model] == price

    def test_any_other_model_has_the_default_pair(self) -> None:
        quote = quote_for("acme/unheard-of")
        assert (quote.input_price, quote.output_price, quote.source) == (50_000, 200_000, "default")
        assert Price(50_000, 200_000) == DEFAULT_PRICE

    def test_the_minimum_is_part_of_the_quote(self) -> None:
        assert quote_for(GEMMA).minimum_charge == MINIMUM_CHARGE_MICRO_USD == 100
        assert quote_for(GEMMA, minimum_charge_micro_usd=7).charge_micro_usd(0, 0) == 7

    @given(usages, st.sampled_from(sorted(BUILT_IN_PRICES)))
    def test_a_charge_is_never_below_the_minimum(self, usage: tuple[int, int], model: str) -> None:
        assert quote_for(model).charge_micro_usd(*usage) >= MINIMUM_CHARGE_MICRO_USD

    @given(usages, usages, st.sampled_from([*sorted(BUILT_IN_PRICES), "other"]))
    def test_the_charge_for_the_bounds_covers_every_usage_inside_of_them(
        self, used: tuple[int, int], spare: tuple[int, int], model: str
    ) -> None:
        quote = quote_for(model)
        reserved = quote.charge_micro_usd(used[0] + spare[0], used[1] + spare[1])
        assert quote.charge_micro_usd(*used) <= reserved

    @given(usages)
    def test_a_quote_survives_being_stored(self, usage: tuple[int, int]) -> None:
        quote = quote_for(TRINITY)
        stored = msgspec.json.decode(msgspec.json.encode(quote), type=type(quote))
        assert stored == quote
        assert stored.charge_micro_usd(*usage) == quote.charge_micro_usd(*usage)


class TestRememberedTokens:
    @pytest.mark.parametrize(
        ("model", "prompt", "completion", "cached", "cost"),
        [
            (GEMMA, 900, 2_100, 0, 478),
            (GEMMA, 900, 2_100, 800, 6 + 26 + 420),
            (GEMMA, 900, 2_100, 900, 29 + 420),
            (QWEN_122B, 1_000_000, 0, 1_000_000, 65_000),
            (TRINITY, 1_000_000, 1_000_000, 500_000, 11_500 + 5_750 + 75_000),
            (GEMMA, 900, 210, 899, 100),
        ],
    )
    def test_they_cost_half_of_the_input_price_above_the_minimum(
        self, model: str, prompt: int, completion: int, cached: int, cost: int
    ) -> None:
        assert quote_for(model).charge_micro_usd(prompt, completion, cached_tokens=cached) == cost

    @pytest.mark.parametrize("price", [*BUILT_IN_PRICES.values(), *DEFAULT_PRICES.values()])
    def test_no_price_in_the_book_makes_them_dearer(self, price: Price) -> None:
        assert 0 <= cache_read_price_of(price) <= price.input_price

    def test_half_of_an_odd_price_is_rounded_down_and_a_price_of_its_own_stands(self) -> None:
        assert cache_read_price_of(Price(input_price=13)) == 6
        assert cache_read_price_of(Price(input_price=13, cache_read_price=0)) == 0
        assert quote_for("any/embedding", EMBEDDING).cache_read_price == 10_000

    @given(any_quotes(), remembered_usages())
    def test_an_answer_is_never_dearer_with_them_and_loses_no_more_than_the_discount(
        self, quote: Quote, usage: tuple[int, int, int]
    ) -> None:
        prompt, completion, cached = usage
        charged = quote.charge_micro_usd(prompt, completion, cached_tokens=cached)
        assert quote.minimum_charge <= charged <= quote.charge_micro_usd(prompt, completion)
        exact = prompt * quote.input_price + completion * quote.output_price
        exact -= cached * (quote.input_price - quote.cache_read_price)
        assert charged == quote.minimum_charge or exact - 3 * 10**6 < 10**6 * charged <= exact

    @given(any_quotes(), remembered_usages(), usages)
    def test_a_hold_that_expects_none_covers_every_usage_inside_of_the_bounds(
        self, quote: Quote, usage: tuple[int, int, int], spare: tuple[int, int]
    ) -> None:
        prompt, completion, cached = usage
        reserved = quote.charge_micro_usd(prompt + spare[0], completion + spare[1])
        assert quote.charge_micro_usd(prompt, completion, cached_tokens=cached) <= reserved

    def test_more_of_them_than_the_prompt_has_have_no_price(self) -> None:
        with pytest.raises(ValueError, match="never negative"):
            quote_for(GEMMA).charge_micro_usd(5, 5, cached_tokens=6)
        with pytest.raises(ValueError, match="never negative"):
            quote_for(GEMMA).charge_micro_usd(5, 5, cached_tokens=-1)


class TestBatchQuotes:
    def test_all_rates_are_half_and_the_quote_says_so(self) -> None:
        quote = batch_quote(quote_for(GEMMA))
        assert (quote.input_price, quote.output_price, quote.source) == (32_500, 100_000, "built_in_batch")
        assert quote.cache_read_price == 16_250
        assert quote.minimum_charge == MINIMUM_CHARGE_MICRO_USD
        assert batch_quote(quote_for("acme/unheard-of")).source == "default_batch"

    @given(usages, st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 1_000))
    def test_a_line_costs_half_within_the_rounding_and_never_less_than_the_minimum(
        self, usage: tuple[int, int], input_price: int, output_price: int, minimum: int
    ) -> None:
        whole = msgspec.structs.replace(
            quote_for(GEMMA), input_price=input_price, output_price=output_price, minimum_charge=minimum
        )
        half = batch_quote(whole)
        charged, full = half.charge_micro_usd(*usage), whole.charge_micro_usd(*usage)
        assert minimum <= charged <= full
        # Half a micro-USD a million tokens may be lost to an odd rate, and one to each floor.
        lost = 2 + sum(usage) // 2_000_000 + 2
        assert charged == minimum or full - 2 * lost <= 2 * charged <= full

    @given(usages, usages, st.sampled_from([*sorted(BUILT_IN_PRICES), "other"]))
    def test_the_hold_covers_every_usage_inside_of_the_bounds(
        self, used: tuple[int, int], spare: tuple[int, int], model: str
    ) -> None:
        quote = batch_quote(quote_for(model))
        assert quote.charge_micro_usd(*used) <= quote.charge_micro_usd(used[0] + spare[0], used[1] + spare[1])
