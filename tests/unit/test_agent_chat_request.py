"""A chat completion's body: what is honoured, what is refused, and that refusals quote nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.dialects.chat_request import ChatRequest, parse
from agent.engine.job import ChatMessage
from agent.errors import JobRefused

CANARY = "canary-7141"


def body(**members: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **members}).encode()


def read(**members: Any) -> ChatRequest:
    return parse(body(**members))


def refusal(raw: bytes) -> str:
    with pytest.raises(JobRefused) as caught:
        parse(raw)
    assert caught.value.status_code == 400
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_defaults_are_those_of_the_consumer_api() -> None:
    request = read()
    assert (request.model, request.stream) == ("tiny", False)
    assert request.job.messages == (ChatMessage("user", "hi"),)
    assert request.job.max_tokens is None
    assert (request.job.sampling.temperature, request.job.sampling.top_p, request.job.sampling.seed) == (1.0, 1.0, None)
    assert request.job.stop == ()


def test_all_sampling_members_reach_the_job() -> None:
    job = read(
        temperature=0, top_p=0.5, seed=7, stop=["a", "b"], frequency_penalty=1, presence_penalty=-1, max_tokens=9
    ).job
    sampling = job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.5, 7)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (1, -1)
    assert (job.stop, job.max_tokens) == (("a", "b"), 9)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_every_name_of_the_output_limit_counts(name: str) -> None:
    assert read(**{name: 12}).job.max_tokens == 12


def test_the_smallest_of_several_output_limits_counts() -> None:
    assert read(max_tokens=30, max_completion_tokens=20).job.max_tokens == 20


def test_null_members_are_like_absent_ones() -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "seed", "stop", "max_tokens", "stream", "tools", "n"))
    assert read(**nulls) == read()


def test_a_single_stop_text_is_a_list_of_one() -> None:
    assert read(stop="x").job.stop == ("x",)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert read(messages=[{"role": "user", "content": parts}]).job.messages == (ChatMessage("user", "one two"),)


def test_developer_messages_become_system_messages() -> None:
    roles = ("developer", "system", "user", "assistant", "tool")
    messages = read(messages=[{"role": role, "content": "x"} for role in roles]).job.messages
    assert [message.role for message in messages] == ["system", "system", "user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("n", 2),
        ("logit_bias", {"5": 1}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
        ("top_k", 40),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("endpoint", "/v1/messages"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(member: str, value: object) -> None:
    assert refusal(body(**{member: value})).startswith(f"{member}: not supported")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("tools", []),
        ("tool_choice", "auto"),
        ("response_format", {"type": "text"}),
        ("logprobs", False),
        ("n", 1),
        ("modalities", ["text"]),
        ("endpoint", "/v1/chat/completions"),
        ("user", "someone"),
        ("stream_options", {"include_usage": True}),
        ("an_unknown_member", CANARY),
    ],
)
def test_members_that_ask_for_nothing_are_accepted(member: str, value: object) -> None:
    assert read(**{member: value}) == read()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": CANARY, "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content: missing"),
        ([{"role": "user"}], "messages[0].content: missing"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": CANARY}]}],
            "messages[0].content[0]",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": CANARY}]}], "messages[0].tool_calls"),
        ([], "messages"),
        ([{"content": CANARY}], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
    ],
)
def test_messages_that_cannot_be_rendered_are_refused_by_place(messages: list[Any], expected: str) -> None:
    text = refusal(body(messages=messages))
    assert expected in text
    assert CANARY not in text


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("seed", 1.5),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("frequency_penalty", 3),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("stream", "yes"),
        ("model", 5),
    ],
)
def test_values_outside_their_range_are_refused_by_name(member: str, value: object) -> None:
    assert refusal(body(**{member: value})).startswith(member)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"' + CANARY.encode() + b'"', b"\xff\xfe", b"null", b"[" * 100_000, b'{"model":"\xff"}']
)
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    assert CANARY not in refusal(raw)


def test_a_job_does_not_show_texts_in_its_repr() -> None:
    request = parse(body(messages=[{"role": "user", "content": CANARY}], stop=[CANARY]))
    assert CANARY not in repr(request)
