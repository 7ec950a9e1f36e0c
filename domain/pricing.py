"""Prices, quotes and the cost of a usage (money, sections 3 and 4; consumer API, sections 10.3, 11.3 and 13)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from domain.kinds import EMBEDDING, IMAGE, TEXT, TRANSCRIPTION, ModelKind
from domain.money import TOKENS_PER_PRICE, metered_cost_micro_usd, percent_of

MINIMUM_CHARGE_MICRO_USD = 100

CACHE_READ_PERCENT = 50
"""What a prompt token that the machine remembered costs, in percent of one that it had to read."""

PIXEL = "pixel"
AUDIO_MS = "audio_ms"

UNITS_PER_PRICE: Mapping[str, int] = {PIXEL: 1_048_576, AUDIO_MS: 60_000}
"""What media is metered in, and how much of it costs the price: an image of 1024x1024, a minute of sound."""


class Price(msgspec.Struct, frozen=True):
    """Micro-USD for 1,000,000 tokens; ``unit_price`` is micro-USD for ``UNITS_PER_PRICE[unit]``.

    Text has no unit, media no price of tokens. ``cache_read_price`` is for prompt tokens that the machine remembered,
    never above ``input_price``; None stands for its usual share.
    """

    input_price: int = 0
    output_price: int = 0
    unit: str = ""
    unit_price: int = 0
    cache_read_price: int | None = None


DEFAULT_PRICE = Price(50_000, 200_000)

DEFAULT_PRICES: Mapping[ModelKind, Price] = {
    TEXT: DEFAULT_PRICE,
    EMBEDDING: Price(input_price=10_000, cache_read_price=10_000),  # nothing of it is remembered
    IMAGE: Price(unit=PIXEL, unit_price=1_500),
    TRANSCRIPTION: Price(unit=AUDIO_MS, unit_price=1_000),
}

BUILT_IN_PRICES: Mapping[str, Price] = {
    "mlx-community/gemma-4-26b-a4b-it-8bit": Price(65_000, 200_000),
    "qwen3.5-27b-claude-opus-8bit": Price(100_000, 780_000),
    "mlx-community/Qwen3.5-122B-A10B-8bit": Price(130_000, 1_040_000),
    "mlx-community/MiniMax-M2.5-8bit": Price(60_000, 500_000),
    "mlx-community/Trinity-Mini-8bit": Price(23_000, 75_000),
    "Qwen3-Embedding-0.6B-8bit": Price(input_price=10_000, cache_read_price=10_000),
    "flux_2_klein_4b_q8p.ckpt": Price(unit=PIXEL, unit_price=1_500),
    "flux_2_klein_9b_q8p.ckpt": Price(unit=PIXEL, unit_price=2_500),
    "whisper-large-v3-turbo": Price(unit=AUDIO_MS, unit_price=1_000),
}


class Quote(msgspec.Struct, frozen=True):
    """A price frozen into a request, so that a later price change never touches it.

    ``source`` says where the price came from: ``built_in`` or ``default``, with ``_batch`` at half of it. ``unit`` and
    ``unit_price`` are as in ``Price``; ``cache_read_price`` is resolved.
    """

    input_price: int
    output_price: int
    cache_read_price: int
    source: str
    book_version: int
    minimum_charge: int
    unit: str = ""
    unit_price: int = 0

    def charge_micro_usd(
        self, prompt_tokens: int, completion_tokens: int, units: int = 0, cached_tokens: int = 0
    ) -> int:
        """What a usage costs: a floor for each thing that is metered, then the minimum. ``cached_tokens`` are those of
        the prompt that were remembered."""
        cost = metered_cost_micro_usd(prompt_tokens - cached_tokens, self.input_price, per=TOKENS_PER_PRICE)
        cost += metered_cost_micro_usd(completion_tokens, self.output_price, per=TOKENS_PER_PRICE)
        if cached_tokens:
            cost += metered_cost_micro_usd(cached_tokens, self.cache_read_price, per=TOKENS_PER_PRICE)
        if self.unit:
            cost += metered_cost_micro_usd(units, self.unit_price, per=UNITS_PER_PRICE[self.unit])
        return max(self.minimum_charge, cost)


def cache_read_price_of(price: Price) -> int:
    """Micro-USD for 1,000,000 prompt tokens that the machine remembered."""
    own = price.cache_read_price
    return percent_of(price.input_price, CACHE_READ_PERCENT) if own is None else own


def quote_for(model: str, kind: ModelKind = TEXT, *, minimum_charge_micro_usd: int = MINIMUM_CHARGE_MICRO_USD) -> Quote:
    """The platform's quote for a model: the built-in table, else the default of its kind."""
    price = BUILT_IN_PRICES.get(model)
    found = price or DEFAULT_PRICES[kind]
    return Quote(
        input_price=found.input_price,
        output_price=found.output_price,
        cache_read_price=cache_read_price_of(found),
        source="built_in" if price else "default",
        book_version=1,
        minimum_charge=minimum_charge_micro_usd,
        unit=found.unit,
        unit_price=found.unit_price,
    )


def batch_quote(quote: Quote) -> Quote:
    """Half of all rates, rounded down as every cost is, for a request that waits until machines are idle. The minimum
    charge stays: it pays for the bookkeeping, which costs as much."""
    return msgspec.structs.replace(
        quote,
        input_price=quote.input_price // 2,
        output_price=quote.output_price // 2,
        cache_read_price=quote.cache_read_price // 2,
        unit_price=quote.unit_price // 2,
        source=f"{quote.source}_batch",
    )
