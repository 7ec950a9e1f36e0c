"""OpenAI's legacy dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.consumer.answers import (
    ChosenToken,
    LikelyToken,
    ProviderDelta,
    ProviderLogprobs,
    ProviderMessage,
    Whole,
    WholeChoice,
)
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


def answer(
    *, include_usage: bool = False, echo: str = "", choices: int = 1, logprobs: bool = False
) -> CompletionAnswer:
    return CompletionAnswer(
        model="M",
        created=1_777_500_000,
        include_usage=include_usage,
        echoes=(echo,) * choices,
        with_logprobs=logprobs,
    )


def delta(finish: str | None = None, *, index: int = 0, **message: Any) -> tuple[ProviderDelta, ...]:
    return (ProviderDelta(index, ProviderMessage(**message), finish),)


def sent(members: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(body_for_machine(chat, 16, "salt")) for chat in parse_completion(ASK | members).chats]


@pytest.mark.parametrize("prompt", ["Paris is", ["Paris is"]])
def test_a_prompt_becomes_the_message_of_a_user(prompt: Any) -> None:
    assert sent({"prompt": prompt, "echo": False, "suffix": "", "user": "u"}) == [
        {
            "model": "M",
            "messages": [{"role": "user", "content": "Paris is"}],
            "max_tokens": 16,
            "cache_salt": "salt",
        }
    ]


def test_each_of_several_prompts_becomes_a_request() -> None:
    request = parse_completion(ASK | {"prompt": ["a", "b"], "echo": True, "n": 2})
    assert [chat.body["messages"][0]["content"] for chat in request.chats] == ["a", "b"]
    assert [chat.expected.choices for chat in request.chats] == [2, 2]
    assert request.echoes == ("a", "b")
    assert parse_completion(ASK | {"prompt": ["a", "b"]}).echoes == ("", "")


def test_log_probabilities_are_asked_for_in_the_words_of_a_chat() -> None:
    (body,) = sent({"logprobs": 0})
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)
    (body,) = sent({"logprobs": 5.0})
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    assert "logprobs" not in sent({})[0]


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": ""}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", "b"], "colour": "x" * 65_536}, "prompt"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"n": 5}, "n"),
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


def test_each_choice_has_its_echo_and_its_finish() -> None:
    rendering = answer(echo="Paris is", choices=2)
    raw = rendering.start(STARTED) + rendering.delta(delta(content=" a", index=1)) + rendering.delta(delta("length"))
    raw += rendering.finish(UNSIGNED)
    events = [json.loads(event[6:])["choices"][0] for event in raw.split(b"\n\n")[:-2]]
    assert [(event["index"], event["text"], event["finish_reason"]) for event in events] == [
        (0, "Paris is", None),
        (1, "Paris is", None),
        (1, " a", None),
        (0, "", "length"),
        (1, "", "stop"),
    ]


def test_log_probabilities_are_lists_side_by_side() -> None:
    rendering = answer(logprobs=True)
    rendering.start(STARTED)
    found = []
    for token in ("é", "x"):
        likely = ChosenToken(token, -0.5, None, (LikelyToken(token, -0.5), LikelyToken("y", -2.0)))
        chunk = (ProviderDelta(0, ProviderMessage(content=token), logprobs=ProviderLogprobs((likely,))),)
        found.append(json.loads(rendering.delta(chunk)[6:])["choices"][0]["logprobs"])
    assert found == [
        {
            "tokens": [token],
            "token_logprobs": [-0.5],
            "top_logprobs": [{token: -0.5, "y": -2.0}],
            "text_offset": [offset],
        }
        for offset, token in enumerate("éx")
    ]


def test_without_likelier_ones_the_member_for_them_is_null() -> None:
    tokens = ProviderLogprobs((ChosenToken("x", -0.5),))
    whole = Whole((WholeChoice(ProviderMessage(content="x"), 0, "stop", logprobs=tokens),))
    (choice,) = json.loads(answer(logprobs=True).whole(STARTED, whole, UNSIGNED))["choices"]
    assert choice["logprobs"] == {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": None, "text_offset": [0]}


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
