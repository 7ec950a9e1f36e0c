"""Integer micro-USD: rounding, parsing and display (money, section 1).

Every amount inside the system is an ``int`` of micro-USD; 1 USD is 1,000,000. No float ever holds money.
"""

from __future__ import annotations

import re

MICRO_USD_PER_USD = 1_000_000
TOKENS_PER_PRICE = 1_000_000
"""Prices are micro-USD for this many tokens."""

AMOUNT_MICRO_USD_MAX = 2**62
"""Amounts stay well inside a signed 64-bit column, sums included."""

_DECIMAL = re.compile(r"\+?([0-9]{1,12})(?:\.([0-9]{1,6}))?")


class NotAnAmount(ValueError):
    """The text is not a plain decimal number of dollars."""


def metered_cost_micro_usd(amount: int, price_micro_usd: int, *, per: int) -> int:
    """Cost of an amount of which ``per`` cost the price, rounded down. What is metered apart is rounded apart and then
    added."""
    if amount < 0 or price_micro_usd < 0:
        raise ValueError("amounts and prices are never negative")
    return amount * price_micro_usd // per


def percent_of(amount_micro_usd: int, percent: int) -> int:
    """The share of an amount, rounded down. The other party gets the rest, so shares add up exactly."""
    if amount_micro_usd < 0 or not 0 <= percent <= 100:
        raise ValueError("a share is 0 to 100 percent of an amount that is not negative")
    return amount_micro_usd * percent // 100


def parse_usd(text: str, *, fraction_digits_max: int = 6) -> int:
    """Parse a decimal number of dollars exactly; returns micro-USD.

    Raises:
        NotAnAmount: anything but digits, one point and an optional leading plus, or too many decimals.
    """
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        raise NotAnAmount(f"{text[:40]!r} is not an amount of dollars such as 5 or 12.50")
    whole, fraction = match.group(1), match.group(2) or ""
    if len(fraction) > fraction_digits_max:
        raise NotAnAmount(f"an amount has at most {fraction_digits_max} decimals here")
    return int(whole) * MICRO_USD_PER_USD + int(fraction.ljust(6, "0"))


def format_usd(amount_micro_usd: int) -> str:
    """Exactly six decimals, such as ``4.750000``."""
    whole, fraction = divmod(abs(amount_micro_usd), MICRO_USD_PER_USD)
    return f"{'-' if amount_micro_usd < 0 else ''}{whole}.{fraction:06d}"


def format_usd_cents(amount_micro_usd: int) -> str:
    """Exactly two decimals, such as ``5.00``, for an amount of whole cents that is not negative."""
    whole, fraction = divmod(amount_micro_usd, MICRO_USD_PER_USD)
    if amount_micro_usd < 0 or fraction % 10_000:
        raise ValueError("an amount of whole cents is not negative")
    return f"{whole}.{fraction // 10_000:02d}"
