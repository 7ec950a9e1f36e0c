"""From a valid request to a held worst case: the bounds, the quote, the command (money, section 4.1)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from api.consumer.chat_request import DEFAULT_OUTPUT_TOKENS, ROUTING_OUTPUT_TOKENS, ChatRequest
from domain.catalog import CatalogModel
from domain.eventsourced import Actor
from domain.keys import Caller
from domain.ledger import Admit
from domain.pricing import quote_for

TOOLS_TEMPLATE_TOKENS = 1_024
"""What a chat template says about tools beside the tools themselves."""


class Bounds(msgspec.Struct, frozen=True):
    """The most tokens that a request can be charged for, and what routing expects of it. ``output_limit`` is for one of
    its choices, the others are for all of them."""

    prompt_bound: int
    output_limit: int
    output_bound: int
    prompt_estimate: int
    output_estimate: int


def bounds_of(request: ChatRequest, model: CatalogModel) -> Bounds:
    """A token is at least one byte, so a prompt has no more tokens than bytes, plus what the template adds. Templates
    lay tools out with spaces and line breaks, so those count twice."""
    template_tokens = model.template_tokens + model.message_tokens * request.message_count
    if request.tools_bytes:
        template_tokens += 2 * request.tools_bytes + TOOLS_TEMPLATE_TOKENS
    choices = request.expected.choices
    output_limit = min(request.output_limit or DEFAULT_OUTPUT_TOKENS, model.output_max)
    return Bounds(
        prompt_bound=min(request.prompt_bytes + template_tokens, model.context_length),
        output_limit=output_limit,
        output_bound=output_limit * choices,
        prompt_estimate=request.prompt_estimate,
        output_estimate=min(request.output_limit or ROUTING_OUTPUT_TOKENS, output_limit) * choices,
    )


def admit_command(
    *,
    request_id: UUID,
    caller: Caller,
    gateway_id: UUID,
    model: CatalogModel,
    bounds: Bounds,
    minimum_charge_micro_usd: int,
    expires_at: datetime,
    self_route: bool = False,
) -> Admit:
    return Admit(
        actor=Actor("consumer", caller.account_id),
        correlation_id=str(request_id),
        request_id=request_id,
        account_id=caller.account_id,
        key_id=caller.key_id,
        key_limit=caller.key.spend_limit,
        gateway_id=str(gateway_id),
        model=model.id,
        prompt_estimate=bounds.prompt_estimate,
        prompt_bound=bounds.prompt_bound,
        output_bound=bounds.output_bound,
        quote=quote_for(model.id, minimum_charge_micro_usd=minimum_charge_micro_usd),
        expires_at=expires_at,
        self_route=self_route,
    )
