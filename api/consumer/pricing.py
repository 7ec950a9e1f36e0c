"""GET /v1/pricing: what everything costs, for everybody to see (money, section 3.3)."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.coordinator import Coordinator
from domain.pricing import AUDIO_MS, BUILT_IN_PRICES, PIXEL, Quote, quote_for

router = APIRouter()


@router.get("/v1/pricing")
async def get_pricing(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    quotes = [(model, quote_for(model)) for model in sorted(BUILT_IN_PRICES)]
    by_tokens = [(model, quote) for model, quote in quotes if not quote.unit]
    prices = {
        "prices": [{"model": model, **_by_token("", quote)} for model, quote in by_tokens],
        "transcription_prices": [_per("minute", model, quote) for model, quote in quotes if quote.unit == AUDIO_MS],
        "image_prices": [_per("image", model, quote) for model, quote in quotes if quote.unit == PIXEL],
        **_by_token("fallback_", quote_for("")),  # no model's name, so the default price
        "minimum_charge_micro_usd": coordinator.settings.minimum_charge_micro_usd,
    }
    return Response(msgspec.json.encode(prices), media_type="application/json")


def _per(what: str, model: str, quote: Quote) -> dict[str, Any]:
    """Micro-USD for one image of 1024x1024 or one minute, and the same for people."""
    unit = {"minute": "per audio-minute", "image": "per image (1024x1024)"}[what]
    price = quote.unit_price
    return {"model": model, f"price_per_{what}": price, "price_usd": _usd(price), "unit": unit}


def _by_token(prefix: str, quote: Quote) -> dict[str, Any]:
    """Micro-USD for a million tokens, and the same for people."""
    return {
        f"{prefix}input_price": quote.input_price,
        f"{prefix}cache_read_price": quote.cache_read_price,
        f"{prefix}output_price": quote.output_price,
        f"{prefix}input_usd": _usd(quote.input_price),
        f"{prefix}cache_read_usd": _usd(quote.cache_read_price),
        f"{prefix}output_usd": _usd(quote.output_price),
    }


def _usd(price_micro_usd: int) -> str:
    """Dollars with four decimals, or as many as are needed to hide nothing."""
    whole, fraction = divmod(price_micro_usd, 1_000_000)
    digits = f"{fraction:06d}".rstrip("0")
    return f"${whole}.{digits:0<4}"
