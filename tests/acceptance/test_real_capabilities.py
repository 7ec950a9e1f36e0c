"""Tools, formats, log probabilities and choices from the consumer to real MLX and back, with the official packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from tests.support.machine import MODEL
from tests.support.processes import Coordinator, Key, Process

ASK: Any = [{"role": "user", "content": "What is a hold?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"open": {"type": "boolean"}},
    "required": ["open"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "gate", "parameters": PARAMETERS}}


class Gate(pydantic.BaseModel):
    open: bool


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def client(up: Coordinator, real_agent: Process, key: Key) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client:
        yield client
    up.books.require_balanced()


@pytest.fixture
def claude(up: Coordinator, real_agent: Process, key: Key) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=up.url, api_key=key.secret, max_retries=0) as client:
        yield client
    up.books.require_balanced()


@pytest.fixture(autouse=True)
def _nothing_is_clamped(up: Coordinator) -> Iterator[None]:
    """An honest machine's count is never above the bound that follows from what it delivered."""
    clamped = "SELECT count(*) FROM events WHERE topic = 'InferenceRequest.UsageClaimClamped'"
    before = up.books.value(clamped)
    yield
    assert up.books.value(clamped) == before


def test_a_call_that_is_demanded_is_made_and_its_result_is_taken_back(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": ASK, "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    whole = client.chat.completions.create(**asked, max_tokens=400)
    with client.chat.completions.stream(**asked, max_tokens=400) as stream:
        streamed = stream.get_final_completion()
    calls = []
    for completion in (whole, streamed):
        assert completion.choices[0].finish_reason == "tool_calls"
        called = completion.choices[0].message.tool_calls or []
        calls.append([(call.function.name, json.loads(call.function.arguments)) for call in called])
    assert calls[0] == calls[1]
    for name, arguments in calls[0]:
        assert name == "gate"
        Gate.model_validate(arguments)
    assert whole.usage is not None
    assert streamed.choices[0].message.tool_calls is not None

    called = whole.choices[0].message.tool_calls or []
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in called]
    messages = [*ASK, whole.choices[0].message.model_dump(exclude_none=True), *results]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    chat = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Gate, temperature=0, max_tokens=400)
    assert isinstance(chat.choices[0].message.parsed, Gate)
    response = client.responses.parse(
        model=MODEL, input="What is a hold?", text_format=Gate, temperature=0, max_output_tokens=400
    )
    assert isinstance(response.output_parsed, Gate)
    message = claude.messages.parse(
        model=MODEL, messages=ASK, output_format=Gate, max_tokens=400, extra_body={"temperature": 0}
    )
    assert isinstance(message.parsed_output, Gate)


def test_the_other_dialects_demand_calls_too(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    flat: Any = {"type": "function", "name": "gate", "parameters": PARAMETERS, "strict": True}
    with client.responses.stream(
        model=MODEL, input="Hi", tools=[flat], tool_choice="required", temperature=0, max_output_tokens=400
    ) as stream:
        response = stream.get_final_response()
    call = response.output[-1]
    assert call.type == "function_call"
    Gate.model_validate_json(call.arguments)
    with claude.messages.stream(
        model=MODEL,
        messages=ASK,
        max_tokens=400,
        tools=[{"name": "gate", "input_schema": PARAMETERS}],  # type: ignore[list-item]
        tool_choice={"type": "tool", "name": "gate", "disable_parallel_tool_use": True},
        extra_body={"temperature": 0},
    ) as message_stream:
        message = message_stream.get_final_message()
    assert message.stop_reason == "tool_use"
    (block,) = message.content
    assert block.type == "tool_use"
    Gate.model_validate(block.input)


def test_log_probabilities_spell_the_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    assert whole.logprobs is not None
    tokens = whole.logprobs.content or []
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in tokens)  # greedy takes the likeliest
    legacy = client.completions.create(
        model=MODEL, prompt="What is a hold?", max_tokens=12, temperature=0, logprobs=2
    ).choices[0]
    assert legacy.logprobs is not None
    assert legacy.logprobs.tokens == [token.token for token in tokens]


def test_choices_and_prompts_are_counted_and_paid_together(client: openai.OpenAI) -> None:
    two = client.chat.completions.create(model=MODEL, messages=ASK, n=2, seed=5, max_tokens=12)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.usage is not None
    assert 12 < two.usage.completion_tokens <= 24
    several = client.completions.create(
        model=MODEL, prompt=["What is a hold?", "What is a slot?", "What is a claim?"], max_tokens=12, temperature=0
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    alone = client.completions.create(model=MODEL, prompt="What is a slot?", max_tokens=12, temperature=0)
    assert several.choices[1].text == alone.choices[0].text


def test_a_conversation_that_goes_on_is_read_from_the_machines_cache(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, temperature=0)
    said = first.choices[0].message.content
    more = [*ASK, {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=MODEL, messages=more, max_tokens=4, temperature=0)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0 < (cached or 0) < second.usage.prompt_tokens
    generation: Any = client.get(f"/generations/{second.id}", cast_to=object)
    assert (generation["prompt_tokens"], generation["cached_tokens"]) == (second.usage.prompt_tokens, cached)
