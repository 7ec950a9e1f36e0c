"""The official ``openai`` package against a coordinator and a real agent: only the base URL and the key change."""

from __future__ import annotations

import openai
import pytest

from tests.support.machine import MODEL
from tests.support.processes import Coordinator, Key, Process

ASK = [{"role": "user", "content": "What is a hold?"}]


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def client(up: Coordinator, key: Key) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0)


def test_a_whole_answer_is_paid_and_shown_in_usage_at_once(
    up: Coordinator, real_agent: Process, key: Key, client: openai.OpenAI
) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=24, temperature=0)
    answer = raw.parse()

    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 24
    job_id = raw.headers["x-inference-job-id"]
    assert answer.id == f"chatcmpl-{job_id}"
    assert raw.headers["x-provider-trust-level"] == "none"
    assert raw.headers["x-provider-attested"] == "false"
    assert raw.headers["x-provider-encrypted"] == "true"
    assert raw.headers["x-response-hash"] == answer.response_hash  # type: ignore[attr-defined]
    assert raw.headers["x-darkbloom-mode"] == "development"

    usage = client.get("/payments/usage", cast_to=object)["usage"]  # type: ignore[index]
    assert [(entry["job_id"], entry["prompt_tokens"], entry["completion_tokens"]) for entry in usage] == [
        (job_id, answer.usage.prompt_tokens, answer.usage.completion_tokens)
    ]
    balance = client.get("/payments/balance", cast_to=object)
    assert balance["balance_micro_usd"] == 5_000_000 - usage[0]["cost_micro_usd"]  # type: ignore[index]
    assert up.books.balance(key.account_id)[2] == 0
    up.books.require_balanced()


def test_a_stream_has_the_shape_that_clients_expect(real_agent: Process, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk for chunk in chunks[1:] if chunk.choices and chunk.choices[0].delta.role] == []
    finishes = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert len(finishes) == 1
    assert finishes[0] is chunks[-2]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert finishes[0].response_hash  # type: ignore[attr-defined]


def test_streamed_and_whole_answers_say_the_same(real_agent: Process, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=32, temperature=0)
    stream = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=32, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content


def test_a_stream_without_usage_asked_for_carries_none(real_agent: Process, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4, stream=True)
    assert all(chunk.usage is None and chunk.choices for chunk in stream)


async def test_the_async_client_runs_several_at_once(up: Coordinator, real_agent: Process, key: Key) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0) for _ in range(8))
        )
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == 8


def test_models_can_be_listed_and_retrieved(real_agent: Process, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("somebody/else")


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"n": 5}, openai.BadRequestError, "n"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
        ({"web_search_options": {}}, openai.BadRequestError, "web_search_options"),
    ],
)
def test_what_cannot_be_done_raises_the_typed_error_and_costs_nothing(
    up: Coordinator,
    key: Key,
    client: openai.OpenAI,
    options: dict[str, object],
    error: type[openai.APIStatusError],
    param: str,
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**({"model": MODEL, "messages": ASK} | options))
    assert raised.value.param == param
    assert raised.value.request_id
    assert up.books.balance(key.account_id) == (5_000_000, 0, 0)


def test_a_wrong_key_raises_the_authentication_error(up: Coordinator) -> None:
    client = openai.OpenAI(base_url=f"{up.url}/v1", api_key="eigeninference-" + "0" * 64, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
