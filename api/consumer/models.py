"""GET /v1/models: what can be asked for now (consumer API, section 12.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate
from api.coordinator import Coordinator
from domain import pricing
from domain.catalog import CatalogModel
from domain.errors import ModelNotFound
from domain.kinds import TEXT, TRANSCRIPTION
from domain.money import format_usd
from domain.pricing import Quote, quote_for
from domain.routing import TRUST_RANK, Snapshot

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    entries = await _entries(request)
    listing = {
        "object": "list",
        "data": entries,
        "has_more": False,
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
    }
    return Response(msgspec.json.encode(listing), media_type="application/json")


@router.get("/v1/models/catalog")
async def list_catalog(request: Request) -> Response:
    """Every model that the network knows, whether a machine serves it now or not."""
    coordinator: Coordinator = request.app.state.coordinator
    wanted = request.query_params.get("type")
    entries = [_catalog_entry(model) for model in coordinator.catalog.active() if wanted in (None, model.kind)]
    return Response(msgspec.json.encode({"models": entries}), media_type="application/json")


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(request: Request, model_id: str) -> Response:
    for entry in await _entries(request):
        if entry["id"] == model_id:
            return Response(msgspec.json.encode(entry), media_type="application/json")
    raise ModelNotFound(param="model")


async def _entries(request: Request) -> list[dict[str, Any]]:
    """One entry a model that at least one machine offers, in order of their ids."""
    coordinator: Coordinator = request.app.state.coordinator
    await authenticate(request.headers, coordinator.credentials)
    by_model: defaultdict[str, list[Snapshot]] = defaultdict(list)
    for machine in await coordinator.fleet.offers():
        for model_id in machine.models:
            by_model[model_id].append(machine)
    entries = []
    for model_id, machines in sorted(by_model.items()):
        model = coordinator.catalog.get(model_id)
        if model is None and coordinator.catalog.open_to_unlisted:
            first = machines[0]
            context_length = first.context_lengths.get(model_id, 0)
            model = coordinator.catalog.unlisted(model_id, context_length, first.kinds.get(model_id, TEXT))
        if model is not None and (fitting := [one for one in machines if one.kinds.get(model_id, TEXT) == model.kind]):
            entries.append(_entry(model, fitting))
    return entries


def _entry(model: CatalogModel, machines: Sequence[Snapshot]) -> dict[str, Any]:
    attested = [machine for machine in machines if machine.trust_level != "none"]
    trust_level = max((machine.trust_level for machine in machines), key=lambda level: TRUST_RANK.get(level, -1))
    quantization = machines[0].quantization.get(model.id) or model.quantization
    facts = {
        "model_type": model.kind,
        "quantization": quantization,
        "provider_count": len(machines),
        "trust_level": trust_level,
        "display_name": model.display_name,
    }
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "eigeninference",
        "type": "model",
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "context_length": model.context_length,
        "max_output_length": model.output_max,
        "input_modalities": ["audio" if model.kind == TRANSCRIPTION else "text"],
        "output_modalities": ["text" if model.kind == TRANSCRIPTION else model.kind],
        "pricing": _pricing(quote_for(model.id, model.kind)),
        **facts,
        "attested": bool(attested),
        "metadata": facts | {"attested_providers": len(attested), "routable_providers": len(machines)},
    }


def _catalog_entry(model: CatalogModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "s3_name": model.id.rpartition("/")[2],
        "display_name": model.display_name,
        "model_type": model.kind,
        "size_gb": model.size_gb,
        "architecture": model.architecture,
        "description": model.description,
        "min_ram_gb": model.min_ram_gb,
        "pricing": _pricing(quote_for(model.id, model.kind)),
        "active": True,
        "weight_hash": "",
    }


def _pricing(quote: Quote) -> dict[str, str]:
    """Dollars for one of whatever the model's kind is charged by."""
    match quote.unit:
        case pricing.PIXEL:
            return {"image": _usd(quote.unit_price)}
        case pricing.AUDIO_MS:
            return {"audio_minute": _usd(quote.unit_price)}
        case _:
            return {
                "prompt": _per_token(quote.input_price),
                "completion": _per_token(quote.output_price),
                "input_cache_read": _per_token(quote.cache_read_price),
            }


def _usd(price_micro_usd: int) -> str:
    return format_usd(price_micro_usd).rstrip("0").rstrip(".")


def _per_token(price_micro_usd: int) -> str:
    """Dollars for one token, exactly: a price is micro-USD for a million tokens."""
    return f"0.{price_micro_usd:012d}".rstrip("0").rstrip(".")
