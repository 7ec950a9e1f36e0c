"""Prices, quotes and the cost of a usage (money, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from domain.money import token_cost_micro_usd

MINIMUM_CHARGE_MICRO_USD = 100


class Price(msgspec.Struct, frozen=True):
    """Micro-USD for 1,000,000 tokens."""

    input_price: int
    output_price: int


DEFAULT_PRICE = Price(50_000, 200_000)

BUILT_IN_PRICES: Mapping[str, Price] = {
    "mlx-community/gemma-4-26b-a4b-it-8bit": Price(65_000, 200_000),
    "qwen3.5-27b-claude-opus-8bit": Price(100_000, 780_000),
    "mlx-community/Qwen3.5-122B-A10B-8bit": Price(130_000, 1_040_000),
    "mlx-community/MiniMax-M2.5-8bit": Price(60_000, 500_000),
    "mlx-community/Trinity-Mini-8bit": Price(23_000, 75_000),
}


class Quote(msgspec.Struct, frozen=True):
    """A price frozen into a request, so that a later price change never touches it.

    ``source`` says where the price came from: ``built_in`` or ``default``, with ``_batch`` at half of it.
    """

    input_price: int
    output_price: int
    source: str
    book_version: int
    minimum_charge: int

    def charge_micro_usd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What a usage costs: two floors, then the minimum."""
        cost = token_cost_micro_usd(prompt_tokens, self.input_price) + token_cost_micro_usd(
            completion_tokens, self.output_price
        )
        return max(self.minimum_charge, cost)


def quote_for(model: str, *, minimum_charge_micro_usd: int = MINIMUM_CHARGE_MICRO_USD) -> Quote:
    """The platform's quote for a model: the built-in table, else the default pair."""
    price = BUILT_IN_PRICES.get(model)
    found = price or DEFAULT_PRICE
    return Quote(
        input_price=found.input_price,
        output_price=found.output_price,
        source="built_in" if price else "default",
        book_version=1,
        minimum_charge=minimum_charge_micro_usd,
    )


def batch_quote(quote: Quote) -> Quote:
    """Half of both rates, rounded down as every cost is, for a request that waits until machines are idle. The minimum
    charge stays: it pays for the bookkeeping, which costs as much."""
    return msgspec.structs.replace(
        quote,
        input_price=quote.input_price // 2,
        output_price=quote.output_price // 2,
        source=f"{quote.source}_batch",
    )
