"""The way of every inference request, whatever its dialect: check, admit, serve (consumer API, section 5.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from fastapi import Request
from starlette.responses import Response

from api.consumer.admission import Bounds, admit_command, bounds_of
from api.consumer.answering import AnswerResponse
from api.consumer.auth import authenticate, require_scope
from api.consumer.body import read_json_object
from api.consumer.chat_request import ChatRequest, body_for_machine
from api.consumer.destination import destination_of, route_in
from api.consumer.idempotency import Recording, replayed_or_claimed
from api.consumer.inference import Inference
from api.consumer.rendering import Call
from api.consumer.side_by_side import SideBySide
from api.coordinator import Coordinator
from domain.catalog import CatalogModel
from domain.dispatch import ReleaseJob
from domain.errors import LedgerUnavailable, ModelNotFound, ServiceUnavailable
from domain.keys import Caller
from domain.routing import Constraints

Reader = Callable[[dict[str, Any]], Call]
"""A dialect: from a body to a valid request and the renderer of its answer. Raises InvalidRequest."""


async def serve(request: Request, read: Reader) -> Response:
    began = time.perf_counter()
    coordinator: Coordinator = request.app.state.coordinator
    coordinator.require_open()
    caller = await authenticate(request.headers, coordinator.credentials)
    require_scope(caller, "inference")
    coordinator.rate_limits.count_request(caller, request.scope)
    route_in(request.headers)  # before an answer is given again: what is not valid then is not valid now
    body = await read_json_object(request, coordinator.settings.inference_body_bytes_max)
    found = await replayed_or_claimed(request, coordinator, body)
    if isinstance(found, Response):
        return found
    try:
        call = read(body)
        return await _admitted(request, coordinator, caller, call, found, began)
    except BaseException:
        found.give_up()
        raise


async def _admitted(
    request: Request, coordinator: Coordinator, caller: Caller, call: Call, recording: Recording, began: float
) -> Response:
    """Admit a valid request; the answer that is returned serves it."""
    model = await model_of(call.chats[0].model, coordinator)
    destination = await destination_of(route_in(request.headers), call.chats[0].allowed, caller, model.id, coordinator)
    bounds = [bounds_of(chat, model) for chat in call.chats]
    limits = coordinator.rate_limits
    expected_tokens = sum(one.prompt_estimate + one.output_estimate for one in bounds)
    limits.count_tokens(caller, expected_tokens, request.scope)
    parse_us = int((time.perf_counter() - began) * 1_000_000)
    expected = call.chats[0].expected
    together = asyncio.Barrier(len(call.chats)) if len(call.chats) > 1 and not expected.stream else None
    inferences: list[Inference] = []
    try:
        for chat, chat_bounds in zip(call.chats, bounds, strict=True):
            inferences.append(
                await _inference(coordinator, caller, chat, model, chat_bounds, destination, parse_us, together)
            )
    except BaseException:
        limits.correct_tokens(caller, -expected_tokens)
        for inference in inferences:
            _give_back(coordinator, caller, inference.request_id)
        raise

    def on_used(tokens: int) -> None:
        limits.correct_tokens(caller, tokens - expected_tokens)

    if len(inferences) == 1:
        return AnswerResponse(inferences[0], call, coordinator, recording, on_used)
    several = SideBySide(inferences, choices_of_each=expected.choices, settle_together=together)
    return AnswerResponse(several, call, coordinator, recording, on_used)


async def _inference(
    coordinator: Coordinator,
    caller: Caller,
    chat: ChatRequest,
    model: CatalogModel,
    bounds: Bounds,
    destination: Constraints,
    parse_us: int,
    settle_together: asyncio.Barrier | None,
) -> Inference:
    began = time.perf_counter()
    request_id = uuid4()
    await _admit(coordinator, caller, request_id, model, bounds, self_route=bool(destination.only_account))
    return Inference(
        request_id=request_id,
        account_id=caller.account_id,
        model=model.id,
        size_gb=model.size_gb,
        bounds=bounds,
        expected=chat.expected,
        body=body_for_machine(chat, bounds.output_limit, coordinator.cache_salt(caller.account_id)),
        inbox=coordinator.switchboard.open(request_id, caller.key_id),
        tools=coordinator.tools,
        timing_us={"parse_us": parse_us, "reserve_us": int((time.perf_counter() - began) * 1_000_000)},
        constraints=destination,
        settle_together=settle_together,
    )


def _give_back(coordinator: Coordinator, caller: Caller, request_id: UUID) -> None:
    """Undo the admission of one prompt, because another one was not admitted."""
    coordinator.switchboard.close(request_id)
    coordinator.end_later(ReleaseJob(request_id=request_id, account_id=caller.account_id, reason="rejected"))


async def _admit(
    coordinator: Coordinator,
    caller: Caller,
    request_id: UUID,
    model: CatalogModel,
    bounds: Bounds,
    *,
    self_route: bool,
) -> None:
    command = admit_command(
        request_id=request_id,
        caller=caller,
        gateway_id=coordinator.gateway_id,
        model=model,
        bounds=bounds,
        minimum_charge_micro_usd=coordinator.settings.minimum_charge_micro_usd,
        expires_at=datetime.now(UTC) + timedelta(seconds=coordinator.settings.hold_seconds),
        self_route=self_route,
    )
    try:
        await coordinator.ledger.run(command)
        coordinator.require_open()
    except (LedgerUnavailable, ServiceUnavailable, asyncio.CancelledError):
        # Nobody may know whether the hold was placed, or nobody here can go on with it; if it was placed, it goes.
        coordinator.end_later(ReleaseJob(request_id=request_id, account_id=caller.account_id, reason="failed"))
        raise


async def model_of(model_id: str, coordinator: Coordinator) -> CatalogModel:
    """The catalog's entry. Raises ModelNotFound."""
    found = coordinator.catalog.get(model_id)
    if found is not None:
        return found
    if coordinator.catalog.open_to_unlisted and model_id.isprintable():
        for machine in await coordinator.fleet.offers(model_id):
            return coordinator.catalog.unlisted(model_id, machine.context_lengths.get(model_id, 0))
    raise ModelNotFound(param="model")
