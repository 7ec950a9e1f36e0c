"""The official ``anthropic`` package against a coordinator: only the base URL and the key change."""

from __future__ import annotations

import json

import anthropic
import pytest

from tests.support.machine import MODEL, Job, Machine
from tests.support.processes import Coordinator, Key, Process

ASK = [{"role": "user", "content": "What is a hold?"}]


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def client(up: Coordinator, key: Key) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=up.url, api_key=key.secret, max_retries=0)


def test_a_whole_answer_is_paid_and_shown_in_usage_at_once(
    up: Coordinator, real_agent: Process, key: Key, client: anthropic.Anthropic
) -> None:
    raw = client.messages.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=24, system="Be brief.")
    message = raw.parse()

    job_id = raw.headers["x-inference-job-id"]
    assert message.id == "msg_" + job_id.replace("-", "")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.content[0].type == "text"
    assert message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= 24
    assert raw.headers["request-id"]
    assert raw.headers["x-provider-encrypted"] == "true"

    usage = client.get("/v1/payments/usage", cast_to=object)["usage"]  # type: ignore[index]
    assert [(entry["job_id"], entry["prompt_tokens"], entry["completion_tokens"]) for entry in usage] == [
        (job_id, message.usage.input_tokens, message.usage.output_tokens)
    ]
    assert usage[0]["cost_micro_usd"] == message.usage.cost_micro_usd  # type: ignore[attr-defined]
    up.books.require_balanced()


def test_the_packages_stream_helper_rebuilds_the_whole_answer(real_agent: Process, client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, messages=ASK, max_tokens=32, extra_body={"temperature": 0})
    with client.messages.stream(model=MODEL, messages=ASK, max_tokens=32, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text == whole.content[0].text
    assert message.stop_reason == whole.stop_reason
    assert _tokens_read(message) == _tokens_read(whole)
    assert message.usage.cache_read_input_tokens  # the machine remembers what it has just read
    assert message.usage.output_tokens == whole.usage.output_tokens


def _tokens_read(message: anthropic.types.Message) -> int:
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


async def test_the_async_client_streams_raw_events_in_their_order(
    up: Coordinator, real_agent: Process, key: Key
) -> None:
    async with anthropic.AsyncAnthropic(base_url=up.url, auth_token=key.secret, max_retries=0) as client:
        stream = await client.messages.create(model=MODEL, messages=ASK, max_tokens=8, stream=True)
        types = [event.type async for event in stream]
    assert types[:2] == ["message_start", "content_block_start"]
    assert set(types[2:-3]) <= {"content_block_delta", "ping"}
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_tokens_are_counted_without_a_machine_and_without_a_charge(
    up: Coordinator, key: Key, client: anthropic.Anthropic
) -> None:
    count = client.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.")
    assert count.input_tokens > client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="no-such-model", messages=ASK)
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)


def test_models_can_be_listed_and_retrieved(real_agent: Process, client: anthropic.Anthropic) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.type, model.display_name) == (MODEL, "model", "Darkbloom Tiny")
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("options", "error", "kind"),
    [
        ({"model": "no-such-model"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"tools": [{"type": "bash_20250124", "name": "b"}]}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
def test_what_cannot_be_done_raises_the_typed_error_and_costs_nothing(
    up: Coordinator,
    key: Key,
    client: anthropic.Anthropic,
    options: dict[str, object],
    error: type[anthropic.APIStatusError],
    kind: str,
) -> None:
    with pytest.raises(error) as raised:
        client.messages.create(**({"model": MODEL, "messages": ASK, "max_tokens": 8} | options))
    assert raised.value.body["type"] == "error"  # type: ignore[index]
    assert raised.value.body["error"]["type"] == kind  # type: ignore[index]
    assert raised.value.body["request_id"] == raised.value.request_id  # type: ignore[index]
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)


def test_a_wrong_key_and_an_empty_balance_raise_their_errors(up: Coordinator) -> None:
    wrong = anthropic.Anthropic(base_url=up.url, api_key="eigeninference-" + "0" * 64, max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        wrong.messages.create(model=MODEL, messages=ASK, max_tokens=8)
    poor = anthropic.Anthropic(base_url=up.url, api_key=up.books.open_account(0).secret, max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as raised:
        poor.messages.create(model=MODEL, messages=ASK, max_tokens=8)
    assert raised.value.status_code == 402
    assert raised.value.body["error"]["type"] == "billing_error"  # type: ignore[index]


async def think_and_call(machine: Machine, job: Job) -> None:
    """Reasoning, text, and then a tool call in two pieces."""
    await job.accept()
    pieces = [
        {"reasoning_content": "The user wants the weather."},
        {"content": "Let me look."},
        {
            "tool_calls": [
                {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"at"'}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": ':"sea"}'}}]},
    ]
    for piece in pieces:
        await job.chunk("data: " + json.dumps({"choices": [{"index": 0, "delta": piece, "finish_reason": None}]}))
    await job.delta(finish="tool_calls")
    await job.complete(7, 12)


async def test_reasoning_and_tool_calls_become_blocks(up: Coordinator, key: Key) -> None:
    async with (
        Machine(up.url, think_and_call, model="thinker").connected(),
        anthropic.AsyncAnthropic(base_url=up.url, api_key=key.secret, max_retries=0) as client,
    ):
        async with client.messages.stream(
            model="thinker", messages=ASK, max_tokens=32, thinking={"type": "enabled", "budget_tokens": 1024}
        ) as stream:
            message = await stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[0].thinking == "The user wants the weather."
    assert message.content[2].input == {"at": "sea"}
    assert message.stop_reason == "tool_use"


async def fail_in_the_middle(machine: Machine, job: Job) -> None:
    await job.accept()
    await job.delta("Hel")
    await machine.drop()


async def test_a_failure_in_the_middle_is_raised_and_costs_nothing(up: Coordinator, key: Key) -> None:
    async with (
        Machine(up.url, fail_in_the_middle, model="failing").connected(),
        anthropic.AsyncAnthropic(base_url=up.url, api_key=key.secret, max_retries=0) as client,
    ):
        stream = await client.messages.create(model="failing", messages=ASK, max_tokens=8, stream=True)
        with pytest.raises(anthropic.APIStatusError) as raised:
            [event async for event in stream]
    assert raised.value.body["error"]["type"] == "api_error"  # type: ignore[index]
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)
