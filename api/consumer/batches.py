"""/v1/batches: many requests in one file, answered while machines are idle, at half price."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import token_of
from api.consumer.batch_lines import lines_of
from api.consumer.body import CONTROL_BYTES_MAX, read_json_object
from api.consumer.files import owner
from api.consumer.idempotency import answered_once
from api.consumer.paging import listing, page_of
from api.coordinator import Coordinator
from domain.batches import ENDPOINTS, OPEN, Batch
from domain.errors import InvalidRequest, NotFound
from domain.keys import Caller

METADATA_MAX = 16
METADATA_KEY_CHARACTERS_MAX = 64
METADATA_VALUE_CHARACTERS_MAX = 512

router = APIRouter()


@router.post("/v1/batches")
async def create_batch(request: Request) -> Response:
    coordinator, caller = await owner(request)
    coordinator.rate_limits.count_request(caller, request.scope)
    body = await read_json_object(request, CONTROL_BYTES_MAX)
    endpoint, file_id = body.get("endpoint"), body.get("input_file_id")
    if endpoint not in ENDPOINTS:
        raise InvalidRequest(f"'endpoint' must be one of {', '.join(ENDPOINTS)}.", param="endpoint")
    if body.get("completion_window") != "24h":
        raise InvalidRequest("'completion_window' must be '24h'.", param="completion_window")
    if body.get("output_expires_after") is not None:
        raise InvalidRequest(
            "'output_expires_after' is not supported here; leave it out.", param="output_expires_after"
        )
    metadata = _metadata(body.get("metadata"))
    if not isinstance(file_id, str):
        raise InvalidRequest("'input_file_id' must be the id of a file.", param="input_file_id")

    async def create() -> bytes:
        credential = token_of(request.headers)
        content = await coordinator.files.content(caller, credential, file_id)
        if content is None:
            raise NotFound("This API key has no file of that id.", param="input_file_id")
        most = coordinator.settings.inference_body_bytes_max
        lines, errors = await asyncio.to_thread(lines_of, content, endpoint, most)
        batch_id = await coordinator.batches.create(
            caller,
            credential,
            endpoint=endpoint,
            input_file_id=file_id,
            lines=lines,
            errors=errors,
            metadata=metadata,
        )
        return msgspec.json.encode(_shown(await _found(coordinator, caller, credential, batch_id)))

    return await answered_once(request, coordinator, body, create)


@router.get("/v1/batches")
async def list_batches(request: Request) -> Response:
    coordinator, caller = await owner(request)
    page = page_of(request)
    after = None if page.after is None else _batch_id(page.after)
    found = await coordinator.batches.list_of(caller, token_of(request.headers), after=after, limit=page.limit + 1)
    return listing([_shown(batch) for batch in found], page)


@router.get("/v1/batches/{batch_id}")
async def get_batch(request: Request, batch_id: str) -> Response:
    coordinator, caller = await owner(request)
    batch = await _found(coordinator, caller, token_of(request.headers), _batch_id(batch_id))
    return Response(msgspec.json.encode(_shown(batch)), media_type="application/json")


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Nothing more of it is started. What runs is finished and charged."""
    coordinator, caller = await owner(request)
    await coordinator.batches.cancel(caller, _batch_id(batch_id))
    batch = await _found(coordinator, caller, token_of(request.headers), _batch_id(batch_id))
    return Response(msgspec.json.encode(_shown(batch)), media_type="application/json")


async def _found(coordinator: Coordinator, caller: Caller, credential: str, batch_id: UUID) -> Batch:
    batch = await coordinator.batches.find(caller, credential, batch_id)
    if batch is None:
        raise _missing()
    return batch


def _batch_id(text: str) -> UUID:
    try:
        return UUID(text.removeprefix("batch_"))
    except ValueError:
        raise _missing() from None


def _missing() -> NotFound:
    return NotFound("This API key has no batch of that id.")


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > METADATA_MAX:
        raise InvalidRequest(f"'metadata' must be an object of at most {METADATA_MAX} texts.", param="metadata")
    for name, text in value.items():
        if len(name) > METADATA_KEY_CHARACTERS_MAX or not isinstance(text, str):
            raise InvalidRequest("'metadata' must be an object of short names and texts.", param="metadata")
        if len(text) > METADATA_VALUE_CHARACTERS_MAX:
            raise InvalidRequest(
                f"A text of 'metadata' has at most {METADATA_VALUE_CHARACTERS_MAX} characters.", param="metadata"
            )
    return value


def _shown(batch: Batch) -> dict[str, Any]:
    ended = _seconds(batch.finished_at)
    started = None if batch.status == "failed" and batch.errors else _seconds(batch.created_at)
    return {
        "id": f"batch_{batch.batch_id.hex}",
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": started,
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": None if batch.status in (*OPEN, "failed") else ended,
        "completed_at": ended if batch.status == "completed" else None,
        "failed_at": ended if batch.status == "failed" else None,
        "expired_at": ended if batch.status == "expired" else None,
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": ended if batch.status == "cancelled" else None,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata or None,
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
