"""The way of every inference request, whatever its dialect: check, admit, serve (consumer API, section 5.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from fastapi import Request
from starlette.responses import Response

from api.consumer.admission import Bounds, admit_command
from api.consumer.answering import AnswerResponse
from api.consumer.auth import authenticate, require_scope
from api.consumer.body import read_json_object
from api.consumer.destination import destination_of, own_account_in, route_in
from api.consumer.idempotency import Recording, replayed_or_claimed
from api.consumer.inference import Inference
from api.consumer.rendering import AnyCall, Prompt
from api.consumer.side_by_side import SideBySide
from api.coordinator import Coordinator
from domain.catalog import CatalogModel
from domain.dispatch import ReleaseJob
from domain.errors import LedgerUnavailable, ModelNotFound, ServiceUnavailable
from domain.keys import Caller
from domain.kinds import TEXT
from domain.protocol import ENDPOINTS
from domain.routing import ANY_MACHINE, Constraints

Reader = Callable[[dict[str, Any]], AnyCall]
"""A dialect: from a body to a valid request and the renderer of its answer. Raises InvalidRequest."""


ReadBody = Callable[[Request, int], Awaitable[dict[str, Any]]]
"""Reads a request's members within a number of bytes. Raises PayloadTooLarge and InvalidRequest."""


async def serve(
    request: Request, read: Reader, *, read_body: ReadBody = read_json_object, bytes_max: int | None = None
) -> Response:
    """Answer an inference request. ``bytes_max`` bounds its body, where that is not the bound of the settings."""
    began = time.perf_counter()
    coordinator: Coordinator = request.app.state.coordinator
    coordinator.require_open()
    caller = await authenticate(request.headers, coordinator.credentials)
    require_scope(caller, "inference")
    coordinator.rate_limits.count_request(caller, request.scope)
    route_in(request.headers)  # before an answer is given again: what is not valid then is not valid now
    body = await read_body(request, bytes_max or coordinator.settings.inference_body_bytes_max)
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
    request: Request, coordinator: Coordinator, caller: Caller, call: AnyCall, recording: Recording, began: float
) -> Response:
    """Admit a valid request; the answer that is returned serves it."""
    model = await model_for(call, coordinator, own_account=own_account_in(request.headers, caller))
    prompts = call.prompts
    destination = await destination_of(route_in(request.headers), prompts[0].allowed, caller, model.id, coordinator)
    bounds = [prompt.bounds(model) for prompt in prompts]
    limits = coordinator.rate_limits
    expected_tokens = sum(one.prompt_estimate + one.output_estimate for one in bounds)
    limits.count_tokens(caller, expected_tokens, request.scope)
    parse_us = int((time.perf_counter() - began) * 1_000_000)
    together = asyncio.Barrier(len(prompts)) if len(prompts) > 1 and call.streamed is None else None
    inferences: list[Inference] = []
    try:
        for prompt, prompt_bounds in zip(prompts, bounds, strict=True):
            began = time.perf_counter()
            request_id = uuid4()
            await admit(
                coordinator, caller, request_id, model, prompt_bounds, self_route=bool(destination.only_account)
            )
            timing_us = {"parse_us": parse_us, "reserve_us": int((time.perf_counter() - began) * 1_000_000)}
            inferences.append(
                inference_of(
                    coordinator,
                    caller,
                    request_id,
                    prompt,
                    model,
                    prompt_bounds,
                    timing_us,
                    constraints=destination,
                    settle_together=together,
                )
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
    several = SideBySide(inferences, choices_of_each=prompts[0].expected.choices, settle_together=together)
    return AnswerResponse(several, call, coordinator, recording, on_used)


def inference_of(
    coordinator: Coordinator,
    caller: Caller,
    request_id: UUID,
    prompt: Prompt,
    model: CatalogModel,
    bounds: Bounds,
    timing_us: dict[str, int],
    *,
    constraints: Constraints = ANY_MACHINE,
    settle_together: asyncio.Barrier | None = None,
    background: bool = False,
) -> Inference:
    """The life of an admitted request, to be iterated. Whoever does closes its place at the switchboard."""
    return Inference(
        request_id=request_id,
        account_id=caller.account_id,
        model=model,
        bounds=bounds,
        expected=prompt.expected,
        reader=prompt.reader,
        body=prompt.body(model, bounds, coordinator.cache_salt(caller.account_id)),
        inbox=coordinator.switchboard.open(request_id, caller.key_id),
        tools=coordinator.tools,
        timing_us=timing_us,
        constraints=constraints,
        settle_together=settle_together,
        background=background,
    )


def _give_back(coordinator: Coordinator, caller: Caller, request_id: UUID) -> None:
    """Undo the admission of one prompt, because another one was not admitted."""
    coordinator.switchboard.close(request_id)
    coordinator.end_later(ReleaseJob(request_id=request_id, account_id=caller.account_id, reason="rejected"))


async def admit(
    coordinator: Coordinator,
    caller: Caller,
    request_id: UUID,
    model: CatalogModel,
    bounds: Bounds,
    *,
    self_route: bool = False,
    background: bool = False,
) -> None:
    """Hold what a request can cost at most. Raises InsufficientFunds, LedgerUnavailable or ServiceUnavailable."""
    gateway_id = coordinator.gateway_id
    command = admit_command(
        request_id=request_id,
        caller=caller,
        gateway_id=gateway_id,
        model=model,
        bounds=bounds,
        minimum_charge_micro_usd=coordinator.settings.minimum_charge_micro_usd,
        expires_at=datetime.now(UTC) + timedelta(seconds=coordinator.settings.hold_seconds),
        self_route=self_route,
        background=background,
    )
    try:
        await coordinator.ledger.run(command)
        coordinator.require_lease(gateway_id)
    except (LedgerUnavailable, ServiceUnavailable, asyncio.CancelledError):
        # Nobody may know whether the hold was placed, or nobody here can go on with it; if it was placed, it goes.
        coordinator.end_later(ReleaseJob(request_id=request_id, account_id=caller.account_id, reason="failed"))
        raise


async def model_for(call: AnyCall, coordinator: Coordinator, *, own_account: str = "") -> CatalogModel:
    """The model that a request names, or the first of its kind. Raises ModelNotFound."""
    named, catalog = call.model, coordinator.catalog
    model = await model_of(named, coordinator, own_account=own_account) if named else catalog.first_of(call.kind)
    if model is None:
        raise ModelNotFound(param="model")
    if model.kind != call.kind:
        raise ModelNotFound(f"This model is of the kind {model.kind}; POST to {ENDPOINTS[model.kind]}.", param="model")
    return model


async def model_of(model_id: str, coordinator: Coordinator, *, own_account: str = "") -> CatalogModel:
    """The catalog's entry; an open catalog has what the machines offer that may be asked. Raises ModelNotFound."""
    found = coordinator.catalog.get(model_id)
    if found is not None:
        return found
    if coordinator.catalog.open_to_unlisted and model_id.isprintable():
        for machine in await coordinator.fleet.offers(model_id, own_account=own_account):
            context_length = machine.context_lengths.get(model_id, 0)
            return coordinator.catalog.unlisted(model_id, context_length, machine.kinds.get(model_id, TEXT))
    raise ModelNotFound(param="model")
