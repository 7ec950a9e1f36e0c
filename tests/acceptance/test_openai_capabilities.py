"""The official ``openai`` package with tools, formats, log probabilities, several choices and several prompts, on a
machine that has all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest

from domain.protocol import InferenceError
from tests.support.capable import CACHED_TOKENS, FORECAST, PROMPT_TOKENS, THOUGHT, answer_as_asked
from tests.support.machine import Job, Machine
from tests.support.processes import Coordinator, Key, eventually

CAPABLE = "capable"
ASK: Any = [{"role": "user", "content": "What is the weather in Ulm?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": PARAMETERS}}


class Forecast(pydantic.BaseModel):
    city: str
    degrees: int


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
async def machine(up: Coordinator) -> AsyncIterator[Machine]:
    async with Machine(up.url, answer_as_asked, model=CAPABLE).connected() as connected:
        yield connected


@pytest.fixture
async def client(up: Coordinator, key: Key, machine: Machine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client:
        yield client
    up.books.require_balanced()


async def test_a_round_trip_with_tools(client: openai.AsyncOpenAI, machine: Machine) -> None:
    tools = [WEATHER, TIME]
    whole = (await client.chat.completions.create(model=CAPABLE, messages=ASK, tools=tools)).choices[0]
    async with client.chat.completions.stream(model=CAPABLE, messages=ASK, tools=tools) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"
    assert whole.message.content is None
    for choice in (whole, streamed):
        called = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        assert called == [("call_0", "weather", '{"city":"Ulm"}'), ("call_1", "time", '{"city":"Ulm"}')]

    results = [{"role": "tool", "tool_call_id": call, "content": "7 degrees"} for call in ("call_0", "call_1")]
    messages = [*ASK, whole.message.model_dump(exclude_none=True), *results]
    answer = await client.chat.completions.create(model=CAPABLE, messages=messages, tools=tools)
    assert answer.choices[0].message.content == "It is 7 degrees."
    assert [message["role"] for message in list(machine.jobs.values())[-1].body["messages"]] == [
        "user",
        "assistant",
        "tool",
        "tool",
    ]


def test_the_synchronous_client_does_the_same(up: Coordinator, key: Key) -> None:
    async def with_a_machine() -> None:
        async with Machine(up.url, answer_as_asked, model=CAPABLE).connected():
            await asyncio.to_thread(ask)

    def ask() -> None:
        with openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client:
            whole = client.chat.completions.create(model=CAPABLE, messages=ASK, tools=[WEATHER])
            chunks = list(client.chat.completions.create(model=CAPABLE, messages=ASK, tools=[WEATHER], stream=True))
            parsed = client.chat.completions.parse(model=CAPABLE, messages=ASK, response_format=Forecast)
        assert (whole.choices[0].message.tool_calls or ())[0].function.name == "weather"
        pieces = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
        assert [piece.id for piece in pieces] == ["call_0", None, None]
        assert "".join(piece.function.arguments or "" for piece in pieces if piece.function) == '{"city":"Ulm"}'
        assert parsed.choices[0].message.parsed == Forecast(city="Ulm", degrees=7)

    asyncio.run(with_a_machine())


async def test_a_stream_of_calls_byte_by_byte(up: Coordinator, key: Key, machine: Machine) -> None:
    body = {"model": CAPABLE, "messages": ASK, "tools": [WEATHER], "stream": True}
    with up.client(key.secret) as client:
        raw = await asyncio.to_thread(lambda: client.post("/v1/chat/completions", json=body).text)
    events = [json.loads(event.removeprefix("data: ")) for event in raw.split("\n\n")[:-2]]
    assert raw.endswith("data: [DONE]\n\n")
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""},
        {
            "tool_calls": [
                {"index": 0, "id": "call_0", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ty":"Ulm"}'}}]},
        {},
    ]
    assert ":null" not in raw.replace('"logprobs":null', "").replace('"finish_reason":null', "")


async def test_what_is_asked_for_reaches_the_machine(client: openai.AsyncOpenAI, machine: Machine) -> None:
    asked: dict[str, Any] = {
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "logit_bias": {"5": -100},
        "reasoning_effort": "low",
        "seed": 3,
    }
    more = {"top_k": 2, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": True}}
    await client.chat.completions.create(model=CAPABLE, messages=ASK, **asked, extra_body=more | {"cache_salt": "mine"})
    (job,) = machine.jobs.values()
    assert {name: job.body[name] for name in asked | more} == asked | more
    assert len(job.body["cache_salt"]) == 64


async def test_machines_can_tell_accounts_apart_and_not_who_they_are(
    up: Coordinator, key: Key, client: openai.AsyncOpenAI, machine: Machine
) -> None:
    other = up.books.open_account(5_000_000)
    for secret in (key.secret, key.secret, other.secret):
        await client.with_options(api_key=secret).chat.completions.create(model=CAPABLE, messages=ASK)
    first, second, third = (job.body["cache_salt"] for job in machine.jobs.values())
    assert first == second != third
    assert key.account_id not in json.dumps([job.body for job in machine.jobs.values()])


async def test_several_choices_are_priced_together(up: Coordinator, key: Key, client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=CAPABLE, messages=ASK, n=2, max_tokens=50)
    assert [choice.message.content for choice in whole.choices] == ["Number 0 says hi.", "Number 1 says hi."]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    stream = await client.chat.completions.create(model=CAPABLE, messages=ASK, n=2, max_tokens=50, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].index for chunk in chunks if chunk.choices[0].delta.role] == [0, 1]
    assert [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason] == [0, 1]
    for index in (0, 1):
        said = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in said) == whole.choices[index].message.content


async def test_log_probabilities_in_every_dialect_that_has_them(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model=CAPABLE, messages=ASK, logprobs=True, top_logprobs=2, extra_body={"n": 1.0}
    )
    assert chat.choices[0].logprobs is not None
    tokens = chat.choices[0].logprobs.content or []
    assert "".join(token.token for token in tokens) == chat.choices[0].message.content
    assert [likely.token for likely in tokens[0].top_logprobs] == ["Number", "o0"]
    async with client.chat.completions.stream(model=CAPABLE, messages=ASK, logprobs=True, top_logprobs=2) as stream:
        streamed = await stream.get_final_completion()
    assert streamed.choices[0].logprobs is not None
    assert streamed.choices[0].logprobs.content == tokens

    legacy = (await client.completions.create(model=CAPABLE, prompt="Hi", logprobs=1)).choices[0]
    assert legacy.logprobs is not None
    assert "".join(legacy.logprobs.tokens or []) == legacy.text
    assert legacy.logprobs.text_offset == [0, 6, 8, 13]
    assert legacy.logprobs.top_logprobs is not None
    assert legacy.logprobs.top_logprobs[0] == {"Number": -0.5}

    response = await client.responses.create(
        model=CAPABLE, input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    async with client.responses.stream(
        model=CAPABLE, input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
    ) as response_stream:
        events = [event async for event in response_stream]
        built_up = await response_stream.get_final_response()
    for one in (response, built_up):
        (part,) = one.output[0].content  # type: ignore[union-attr]
        assert "".join(token.token for token in part.logprobs or []) == one.output_text  # type: ignore[union-attr]
    pieces = [token.token for event in events if event.type == "response.output_text.delta" for token in event.logprobs]
    assert "".join(pieces) == built_up.output_text


async def test_answers_are_parsed_by_the_packages_helpers(client: openai.AsyncOpenAI, machine: Machine) -> None:
    parsed = await client.chat.completions.parse(model=CAPABLE, messages=ASK, response_format=Forecast)
    assert parsed.choices[0].message.parsed == Forecast(city="Ulm", degrees=7)
    async with client.chat.completions.stream(model=CAPABLE, messages=ASK, response_format=Forecast) as stream:
        assert (await stream.get_final_completion()).choices[0].message.parsed == Forecast(city="Ulm", degrees=7)
    response = await client.responses.parse(model=CAPABLE, input="Weather?", text_format=Forecast)
    assert response.output_parsed == Forecast(city="Ulm", degrees=7)
    for job in machine.jobs.values():
        assert job.body["response_format"]["json_schema"]["schema"]["required"] == ["city", "degrees"]
    tool = openai.pydantic_function_tool(Forecast, name="forecast")
    called = await client.chat.completions.create(model=CAPABLE, messages=ASK, tools=[tool])
    assert called.choices[0].finish_reason == "tool_calls"
    plain = await client.chat.completions.create(model=CAPABLE, messages=ASK, response_format={"type": "json_object"})
    assert plain.choices[0].message.content == FORECAST


async def test_a_round_trip_with_tools_in_responses(client: openai.AsyncOpenAI, machine: Machine) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]
    whole = await client.responses.create(model=CAPABLE, input="Weather?", tools=tools, reasoning={"effort": "low"})
    async with client.responses.stream(
        model=CAPABLE, input="Weather?", tools=tools, reasoning={"effort": "low"}
    ) as stream:
        events = [event async for event in stream]
        streamed = await stream.get_final_response()
    assert (
        [item.type for item in whole.output]
        == [item.type for item in streamed.output]
        == [
            "reasoning",
            "function_call",
        ]
    )
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert deltas == ['{"ci', 'ty":"Ulm"}']
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == CACHED_TOKENS

    call = whole.output[1]
    assert call.type == "function_call"
    items: Any = [
        {"role": "user", "content": "Weather?"},
        *[item.model_dump() for item in whole.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "7 degrees"},
    ]
    answer = await client.responses.create(model=CAPABLE, input=items, tools=tools)
    assert answer.output_text == "It is 7 degrees."
    sent = list(machine.jobs.values())[-1].body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]


async def test_reasoning_and_the_cache_are_counted(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=CAPABLE, messages=ASK, reasoning_effort="high")
    assert answer.choices[0].message.reasoning_content == THOUGHT  # type: ignore[attr-defined]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (
        PROMPT_TOKENS,
        CACHED_TOKENS,
    )
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3


class TestSeveralPrompts:
    PROMPTS = ("one", "two", "three", "four", "five")

    @pytest.fixture
    async def machine(self, up: Coordinator) -> AsyncIterator[Machine]:
        """One with fewer slots than there are prompts."""
        async with Machine(up.url, answer_as_asked, model=CAPABLE, concurrency=2).connected() as connected:
            yield connected

    async def test_each_is_a_request_of_its_own_and_all_are_one_answer(
        self, up: Coordinator, key: Key, client: openai.AsyncOpenAI
    ) -> None:
        whole = await client.completions.create(model=CAPABLE, prompt=list(self.PROMPTS), n=2, max_tokens=20, echo=True)
        assert [choice.index for choice in whole.choices] == list(range(10))
        assert [choice.text for choice in whole.choices] == [
            f"{prompt}Number {index} says hi." for prompt in self.PROMPTS for index in (0, 1)
        ]
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5 * PROMPT_TOKENS, 5 * 24)
        usage = (await client.get("/payments/usage", cast_to=object))["usage"]  # type: ignore[index]
        assert len(usage) == 5
        assert sum(entry["cost_micro_usd"] for entry in usage) == whole.usage.cost_micro_usd  # type: ignore[attr-defined]
        assert up.books.balance(key.account_id)[2] == 0

    async def test_a_stream_of_them_says_the_same(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(
            model=CAPABLE, prompt=list(self.PROMPTS), stream=True, max_tokens=20, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        for index in range(5):
            said = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
            assert "".join(choice.text for choice in said) == "Number 0 says hi."
            assert [choice.finish_reason for choice in said if choice.finish_reason] == ["stop"]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5 * 12

    async def test_one_that_fails_fails_all_and_nothing_is_charged(self, up: Coordinator, key: Key) -> None:
        async def fail_the_third(machine: Machine, job: Job) -> None:
            if job.body["messages"][0]["content"] == "three":
                await job.accept()
                await machine.send(InferenceError(request_id=job.job_id, error="too long", status_code=400))
            else:
                await answer_as_asked(machine, job)

        async with (
            Machine(up.url, fail_the_third, model="choosy", concurrency=2).connected(),
            openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client,
        ):
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="choosy", prompt=list(self.PROMPTS), max_tokens=20)
        assert up.books.balance(key.account_id) == (5_000_000, 0, 0)

    async def test_when_the_last_hold_is_too_much_all_are_returned(self, up: Coordinator, machine: Machine) -> None:
        poor = up.books.open_account(1_000)
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=poor.secret, max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as raised:
                await client.completions.create(model=CAPABLE, prompt=list(self.PROMPTS), max_tokens=2_000)
        assert raised.value.status_code == 402
        await asyncio.to_thread(
            eventually, lambda: up.books.balance(poor.account_id) == (1_000, 0, 0), "the holds to be returned"
        )
