"""The official ``anthropic`` package with tools, formats and thinking, on a machine that has all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pydantic
import pytest

from tests.support.capable import CACHED_TOKENS, PROMPT_TOKENS, THOUGHT, answer_as_asked
from tests.support.machine import Machine
from tests.support.processes import Coordinator, Key

CAPABLE = "capable"
ASK: Any = [{"role": "user", "content": "What is the weather in Ulm?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}
TIME: Any = {"name": "time", "input_schema": SCHEMA}
THINK: Any = {"type": "enabled", "budget_tokens": 1024}


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
async def client(up: Coordinator, key: Key, machine: Machine) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=up.url, api_key=key.secret, max_retries=0) as client:
        yield client
    up.books.require_balanced()


def last_body(machine: Machine) -> dict[str, Any]:
    return list(machine.jobs.values())[-1].body


async def test_a_round_trip_with_tools(client: anthropic.AsyncAnthropic, machine: Machine) -> None:
    asked: Any = {"model": CAPABLE, "max_tokens": 64, "messages": ASK, "tools": [WEATHER, TIME], "thinking": THINK}
    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert streamed.content == whole.content
    assert [block.type for block in whole.content] == ["thinking", "tool_use", "tool_use"]
    assert [(block.name, block.input) for block in whole.content if block.type == "tool_use"] == [
        ("weather", {"city": "Ulm"}),
        ("time", {"city": "Ulm"}),
    ]
    assert whole.stop_reason == streamed.stop_reason == "tool_use"

    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "7 degrees"}]}
        for block in whole.content
        if block.type == "tool_use"
    ]
    messages = [*ASK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    answer = await client.messages.create(**(asked | {"messages": messages, "thinking": {"type": "disabled"}}))
    assert answer.content[0].text == "It is 7 degrees."  # type: ignore[union-attr]
    sent = last_body(machine)["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == [message["tool_call_id"] for message in sent[2:]]


@pytest.mark.parametrize(
    ("choice", "lowered"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
        ({"type": "none"}, "none"),
    ],
)
async def test_every_choice_of_tools_reaches_the_machine(
    client: anthropic.AsyncAnthropic, machine: Machine, choice: Any, lowered: Any
) -> None:
    message = await client.messages.create(
        model=CAPABLE, max_tokens=64, messages=ASK, tools=[WEATHER, TIME], tool_choice=choice
    )
    assert last_body(machine)["tool_choice"] == lowered
    assert message.stop_reason == ("end_turn" if lowered == "none" else "tool_use")


async def test_a_stream_of_a_call_event_by_event(up: Coordinator, key: Key, machine: Machine) -> None:
    body = {"model": CAPABLE, "max_tokens": 64, "messages": ASK, "tools": [WEATHER], "stream": True}
    with up.client(key.secret) as client:
        raw = await asyncio.to_thread(lambda: client.post("/v1/messages", json=body).text)
    events = []
    for event in raw.split("\n\n")[:-1]:
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + events[-1]["type"]
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[1] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "id": "call_0", "name": "weather", "input": {}},
    }
    assert [event["delta"] for event in events[3:5]] == [
        {"type": "input_json_delta", "partial_json": '{"ci'},
        {"type": "input_json_delta", "partial_json": 'ty":"Ulm"}'},
    ]
    assert events[6]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


async def test_an_answer_is_parsed_by_the_packages_helper(client: anthropic.AsyncAnthropic, machine: Machine) -> None:
    parsed = await client.messages.parse(model=CAPABLE, max_tokens=64, messages=ASK, output_format=Forecast)
    assert parsed.parsed_output == Forecast(city="Ulm", degrees=7)
    assert last_body(machine)["response_format"]["json_schema"]["schema"]["required"] == ["city", "degrees"]


async def test_thinking_is_what_was_asked_for(client: anthropic.AsyncAnthropic, machine: Machine) -> None:
    asked: Any = {"model": CAPABLE, "max_tokens": 64, "messages": ASK}
    plain = await client.messages.create(**asked)
    assert [block.type for block in plain.content] == ["text"]
    assert last_body(machine)["reasoning_effort"] == "none"
    hidden = await client.messages.create(**asked, output_config={"effort": "high"})
    assert [block.type for block in hidden.content] == ["text"]
    assert last_body(machine)["reasoning_effort"] == "high"
    shown = await client.messages.create(**asked, thinking=THINK)
    assert shown.content[0].thinking == THOUGHT  # type: ignore[union-attr]


async def test_what_came_out_of_a_cache_is_counted_apart(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model=CAPABLE, max_tokens=64, messages=ASK) as stream:
        usage = (await stream.get_final_message()).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (PROMPT_TOKENS - CACHED_TOKENS, CACHED_TOKENS)


async def test_the_synchronous_client_does_the_same(up: Coordinator, key: Key, machine: Machine) -> None:
    def ask() -> None:
        with (
            anthropic.Anthropic(base_url=up.url, api_key=key.secret, max_retries=0) as client,
            client.messages.stream(model=CAPABLE, max_tokens=64, messages=ASK, tools=[WEATHER]) as stream,
        ):
            (block,) = stream.get_final_message().content
        assert (block.type, block.input) == ("tool_use", {"city": "Ulm"})  # type: ignore[union-attr]

    await asyncio.to_thread(ask)


async def test_a_tool_is_refused_by_its_name(client: anthropic.AsyncAnthropic) -> None:
    broken: Any = {"name": "f", "input_schema": {"type": "thing"}}
    with pytest.raises(anthropic.BadRequestError) as raised:
        await client.messages.create(model=CAPABLE, max_tokens=64, messages=ASK, tools=[broken])
    assert raised.value.body["error"]["param"] == "tools"  # type: ignore[index]
