from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.admission import TOOLS_TEMPLATE_TOKENS, admit_command, bounds_of
from api.consumer.chat_request import DEFAULT_OUTPUT_TOKENS, ROUTING_OUTPUT_TOKENS, ChatRequest, parse_chat
from domain.catalog import CatalogModel
from domain.eventsourced import Actor
from domain.keys import Caller
from tests.support.examples import REQUEST
from tests.support.memory_ledger import BEGINNING

MODEL = CatalogModel(
    id="model",
    display_name="Model",
    context_length=10_000,
    output_max=4_000,
    template_tokens=50,
    message_tokens=10,
)


def chat(*contents: str, **changes: Any) -> ChatRequest:
    messages = [{"role": "user", "content": content} for content in contents or ("Hello",)]
    return parse_chat({"model": "model", "messages": messages, **changes})


class TestBounds:
    @pytest.mark.parametrize(
        ("limit", "output_bound"), [(1, 1), (3_999, 3_999), (4_000, 4_000), (4_001, 4_000), (2**31 - 1, 4_000)]
    )
    def test_an_explicit_limit_is_kept_up_to_the_models(self, limit: int, output_bound: int) -> None:
        assert bounds_of(chat(max_tokens=limit), MODEL).output_bound == output_bound

    def test_without_a_limit_the_default_is_held_and_the_models_bound_wins(self) -> None:
        large = msgspec.structs.replace(MODEL, output_max=131_072)
        assert bounds_of(chat(), large).output_bound == DEFAULT_OUTPUT_TOKENS == 8_192
        assert bounds_of(chat(), MODEL).output_bound == 4_000

    def test_routing_expects_less_than_is_held_where_no_limit_is_named(self) -> None:
        assert bounds_of(chat(), MODEL).output_estimate == ROUTING_OUTPUT_TOKENS == 256
        assert bounds_of(chat(max_tokens=40), MODEL).output_estimate == 40
        tiny = msgspec.structs.replace(MODEL, output_max=100)
        assert bounds_of(chat(), tiny).output_estimate == 100

    def test_the_template_is_counted_once_and_for_each_message(self) -> None:
        request = chat("a", "b", "c")
        assert bounds_of(request, MODEL).prompt_bound == request.prompt_bytes + 50 + 3 * 10

    def test_tools_may_be_laid_out_wide_and_explained(self) -> None:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        plain, equipped = chat("a"), chat("a", tools=tools)
        assert equipped.tools_bytes == len(msgspec.json.encode(tools))
        assert bounds_of(equipped, MODEL).prompt_bound == (
            bounds_of(plain, MODEL).prompt_bound + 2 * equipped.tools_bytes + TOOLS_TEMPLATE_TOKENS
        )
        assert equipped.prompt_estimate > plain.prompt_estimate
        assert chat("a", tools=[]).tools_bytes == 0

    @given(st.integers(1, 4), st.none() | st.integers(1, 10_000))
    def test_every_choice_may_be_as_long_as_the_only_one(self, choices: int, limit: int | None) -> None:
        one, several = bounds_of(chat(max_tokens=limit), MODEL), bounds_of(chat(max_tokens=limit, n=choices), MODEL)
        assert several.output_limit == one.output_limit == one.output_bound
        assert several.output_bound == choices * one.output_bound
        assert several.output_estimate == choices * one.output_estimate
        assert several.prompt_bound == one.prompt_bound

    def test_a_prompt_is_never_longer_than_the_models_context(self) -> None:
        assert bounds_of(chat("x" * 100_000), MODEL).prompt_bound == 10_000

    @given(st.lists(st.text(st.characters(codec="utf-8"), max_size=50), min_size=1, max_size=5))
    def test_no_tokenizer_can_make_more_tokens_than_the_bound(self, contents: list[str]) -> None:
        # The most that a tokenizer can do is one token a byte; the template adds what the catalog allows.
        worst = sum(len(content.encode()) for content in contents) + 50 + 10 * len(contents)
        assert bounds_of(chat(*contents), MODEL).prompt_bound >= min(worst, MODEL.context_length)


class TestTheCommand:
    def test_it_holds_the_bounds_at_the_models_price(self) -> None:
        request = chat(max_tokens=100)
        bounds = bounds_of(request, MODEL)
        command = admit_command(
            request_id=REQUEST,
            caller=Caller("ada", "key-1"),
            gateway_id=REQUEST,
            model=MODEL,
            bounds=bounds,
            minimum_charge_micro_usd=100,
            expires_at=BEGINNING + timedelta(seconds=3_690),
        )
        assert (command.account_id, command.key_id, command.model) == ("ada", "key-1", "model")
        assert (command.actor, command.correlation_id) == (Actor("consumer", "ada"), str(REQUEST))
        assert (command.prompt_bound, command.output_bound) == (bounds.prompt_bound, 100)
        assert command.quote.source == "default"
        assert command.reserved_micro_usd == command.quote.charge_micro_usd(bounds.prompt_bound, 100)

    def test_the_configured_minimum_is_frozen_into_the_quote(self) -> None:
        command = admit_command(
            request_id=REQUEST,
            caller=Caller("ada", "key-1"),
            gateway_id=REQUEST,
            model=MODEL,
            bounds=bounds_of(chat(max_tokens=1), MODEL),
            minimum_charge_micro_usd=777,
            expires_at=BEGINNING,
        )
        assert command.reserved_micro_usd == 777
