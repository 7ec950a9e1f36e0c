"""OpenAI's legacy dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.consumer.answers import ProviderDelta, ProviderMessage, Whole, WholeChoice
from api.consumer.attempt import Started
from api.consumer.chat_request import body_for_machine
from api.consumer.completions_rendering import CompletionAnswer
from api.consumer.completions_request import parse_completion
from api.consumer.inference import Finished
from domain.errors import InvalidRequest, ProviderFailed
from domain.protocol import Usage
from tests.support.examples import snapshot

STARTED = Started(snapshot(), "job", {})
UNSIGNED = Finished(Usage(5, 2), "", "")
ASK = {"model": "M", "prompt": "Paris is"}
HEAD = b'data: {"id":"cmpl-job","object":"text_completion","created":1777500000,"model":"M","choices":['


def answer(*, include_usage: bool = False, echo: str = "") -> CompletionAnswer:
    return CompletionAnswer(model="M", created=1_777_500_000, include_usage=include_usage, echo=echo)


def delta(finish: str | None = None, **message: Any) -> tuple[ProviderDelta, ...]:
    return (ProviderDelta(0, ProviderMessage(**message), finish),)


@pytest.mark.parametrize("prompt", ["Paris is", ["Paris is"]])
def test_a_prompt_becomes_the_message_of_a_user(prompt: Any) -> None:
    request = parse_completion(ASK | {"prompt": prompt, "echo": False, "suffix": "", "user": "u"})
    assert json.loads(body_for_machine(request.chat, 16)) == {
        "model": "M",
        "messages": [{"role": "user", "content": "Paris is"}],
        "max_tokens": 16,
    }


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": ""}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"stop": ["a"] * 5}, "stop"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_completion(ASK | members)
    assert refused.value.param == param


def test_a_whole_stream_byte_by_byte() -> None:
    rendering = answer(include_usage=True)
    assert rendering.start(STARTED) == b""
    assert rendering.delta(delta(role="assistant", content="")) == b""
    assert rendering.delta(delta(content=" big")) == (
        HEAD + b'{"index":0,"text":" big","logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert rendering.delta(delta("length")) == b""
    assert rendering.finish(UNSIGNED) == (
        HEAD
        + b'{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}\n\n'
        + HEAD
        + b'],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":'
        + b'{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}\n\n'
        + b"data: [DONE]\n\n"
    )


def test_an_echo_stands_in_front_of_the_answer() -> None:
    assert b'"text":"Paris is"' in answer(echo="Paris is").start(STARTED)
    whole = Whole((WholeChoice(ProviderMessage(content=" big"), 0, "stop"),))
    assert json.loads(answer(echo="Paris is").whole(STARTED, whole, UNSIGNED))["choices"] == [
        {"index": 0, "text": "Paris is big", "logprobs": None, "finish_reason": "stop"}
    ]


def test_reasoning_is_kept_beside_the_text() -> None:
    rendering = answer()
    rendering.start(STARTED)
    event = json.loads(rendering.delta(delta(reasoning="hm")).removeprefix(b"data: "))
    assert event["choices"][0]["reasoning_content"] == "hm"
    assert event["choices"][0]["text"] == ""


def test_a_failure_is_an_error_event_without_an_end_of_stream() -> None:
    failed = answer().error(ProviderFailed())
    assert failed.startswith(b'data: {"error":')
    assert b"[DONE]" not in failed
