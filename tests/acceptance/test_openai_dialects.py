"""The official ``openai`` package on the Responses and legacy dialects."""

from __future__ import annotations

import json

import openai
import pytest

from tests.support.machine import MODEL, Job, Machine
from tests.support.processes import Coordinator, Key, Process

QUESTION = "What is a hold?"


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def client(up: Coordinator, key: Key) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0)


def test_a_response_is_whole_and_paid(up: Coordinator, real_agent: Process, key: Key, client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input=QUESTION, instructions="Be brief.", max_output_tokens=24, temperature=0
    )
    assert answer.object == "response"
    assert answer.status in ("completed", "incomplete")
    assert answer.output_text
    assert answer.output[0].type == "message"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.max_output_tokens == 24
    up.books.require_balanced()


def test_a_streamed_response_says_the_same_as_a_whole_one(real_agent: Process, client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=32, temperature=0)
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=32, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.input_tokens_details.cached_tokens  # the machine remembers what it has just read
    again = {"input_tokens_details": whole.usage.input_tokens_details}
    assert final.usage.model_copy(update=again) == whole.usage


def test_a_legacy_completion_is_text(real_agent: Process, client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=24, temperature=0)
    assert whole.object == "text_completion"
    assert whole.choices[0].text
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage is not None
    stream = client.completions.create(
        model=MODEL,
        prompt=QUESTION,
        max_tokens=24,
        temperature=0,
        stream=True,
        echo=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == QUESTION + whole.choices[0].text
    assert chunks[-1].usage is not None
    again = {"prompt_tokens_details": whole.usage.prompt_tokens_details}
    assert chunks[-1].usage.model_copy(update=again) == whole.usage


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, options: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**({"model": MODEL, "input": QUESTION} | options))
    assert raised.value.param == param


def test_stored_responses_do_not_exist(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


async def think_and_call(machine: Machine, job: Job) -> None:
    await job.accept()
    call = {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"at":"sea"}'}}
    if job.body.get("stream"):
        for piece in ({"reasoning_content": "hm"}, {"content": "Look:"}, {"tool_calls": [call | {"index": 0}]}):
            await job.chunk("data: " + json.dumps({"choices": [{"index": 0, "delta": piece, "finish_reason": None}]}))
        await job.delta(finish="tool_calls")
    else:
        message = {"role": "assistant", "content": "Look:", "reasoning_content": "hm", "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await job.chunk("data: " + json.dumps({"choices": [choice]}))
    await job.complete(7, 12)


async def test_reasoning_and_tool_calls_reach_every_dialect(up: Coordinator, key: Key) -> None:
    async with (
        Machine(up.url, think_and_call, model="thinker").connected(),
        openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client,
    ):
        whole = await client.responses.create(model="thinker", input=QUESTION)
        async with client.responses.stream(model="thinker", input=QUESTION) as stream:
            streamed = await stream.get_final_response()
        chat = await client.chat.completions.create(
            model="thinker", messages=[{"role": "user", "content": QUESTION}], max_tokens=64
        )
        async with client.chat.completions.stream(
            model="thinker", messages=[{"role": "user", "content": QUESTION}], max_tokens=64
        ) as chat_stream:
            chat_streamed = await chat_stream.get_final_completion()
    for answer in (whole, streamed):
        assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
        assert json.loads(answer.output[2].arguments) == {"at": "sea"}
    for completion in (chat, chat_streamed):
        (call,) = completion.choices[0].message.tool_calls or ()
        assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call_a", "f", {"at": "sea"})
        assert completion.choices[0].finish_reason == "tool_calls"
    up.books.require_balanced()


async def fail_in_the_middle(machine: Machine, job: Job) -> None:
    await job.accept()
    await job.delta("Hel")
    await machine.drop()


async def test_a_failure_in_the_middle_is_a_failed_response(up: Coordinator, key: Key) -> None:
    async with (
        Machine(up.url, fail_in_the_middle, model="failing").connected(),
        openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client,
    ):
        stream = await client.responses.create(model="failing", input=QUESTION, stream=True)
        events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "provider_error"
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)


async def go_back_to_an_earlier_call(machine: Machine, job: Job) -> None:
    await job.accept()
    for index in (1, 0):
        piece = {"tool_calls": [{"index": index, "id": f"call_{index}", "function": {"name": "f", "arguments": ""}}]}
        await job.chunk("data: " + json.dumps({"choices": [{"index": 0, "delta": piece, "finish_reason": None}]}))
    await job.delta(finish="tool_calls")
    await job.complete(7, 2)


async def test_a_machine_that_goes_back_to_an_earlier_tool_call_breaks_the_protocol(up: Coordinator, key: Key) -> None:
    async with (
        Machine(up.url, go_back_to_an_earlier_call, model="confused").connected() as machine,
        openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client,
    ):
        stream = await client.responses.create(model="confused", input=QUESTION, stream=True)
        assert [event.type async for event in stream][-1] == "response.failed"
        assert machine.status is not None
        assert machine.status.trust_level == "none"
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)
