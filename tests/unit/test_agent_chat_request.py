"""A chat completion's body: what is honoured, what is refused, and that refusals quote nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.dialects.chat_request import ChatRequest, parse
from agent.engine.job import ChatMessage, ToolCall
from agent.errors import JobRefused

CANARY = "canary-7141"


def body(**members: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **members}).encode()


def read(**members: Any) -> ChatRequest:
    return parse(body(**members))


def tool(name: str, **members: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **members}}


def call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": arguments}}


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


def test_what_goes_beyond_sampling_reaches_the_job() -> None:
    job = read(
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "7": 1.5},
        logprobs=True,
        top_logprobs=3,
        n=2,
        cache_salt="a" * 64,
    ).job
    assert (job.sampling.top_k, job.sampling.min_p, job.sampling.repetition_penalty) == (40, 0.1, 1.1)
    assert job.sampling.logit_bias == ((5, -100), (7, 1.5))
    assert (job.top_logprobs, job.choices, job.cache_salt) == (3, 2, "a" * 64)


@pytest.mark.parametrize(
    ("choice", "required"),
    [
        (None, ()),
        ("auto", ()),
        ("required", ("look", "say")),
        ({"type": "function", "function": {"name": "say"}}, ("say",)),
    ],
)
def test_tools_and_the_choice_among_them_reach_the_job(choice: object, required: tuple[str, ...]) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    tools = [tool("look", description="Looks.", parameters=schema, strict=True), tool("say")]
    toolbox = read(tools=tools, tool_choice=choice, parallel_tool_calls=False).job.toolbox
    assert toolbox is not None
    assert [(each.name, each.description) for each in toolbox.tools] == [("look", "Looks."), ("say", "")]
    assert toolbox.tools[0].parameters == schema
    assert toolbox.tools[1].parameters["additionalProperties"] is False
    assert (toolbox.required, toolbox.parallel) == (required, False)


def test_tools_that_may_not_be_called_are_left_out() -> None:
    assert read(tools=[tool("look")], tool_choice="none").job.toolbox is None


def test_earlier_calls_and_their_results_reach_the_job() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call('{"at": "sky"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
    ]
    assert read(messages=messages).job.messages[1:] == (
        ChatMessage("assistant", "", (ToolCall("call_1", "look", {"at": "sky"}),)),
        ChatMessage("tool", "blue", tool_call_id="call_1"),
    )


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_a_response_format_becomes_a_schema(response_format: object, schema: object) -> None:
    wanted = read(response_format=response_format).job.response_schema
    assert (wanted and json.loads(wanted)) == schema


def test_a_response_format_beside_tools_that_may_be_called_is_refused() -> None:
    members: dict[str, Any] = {"tools": [tool("look")], "response_format": {"type": "json_object"}}
    assert refusal(body(**members)).startswith("response_format: not supported together with tools")
    assert read(**members, tool_choice="none").job.response_schema is not None


@pytest.mark.parametrize(("effort", "thinking"), [(None, None), ("none", False), ("low", True), ("xhigh", True)])
def test_reasoning_effort_is_handed_to_the_template(effort: str | None, thinking: bool | None) -> None:
    job = read(reasoning_effort=effort, chat_template_kwargs={"style": "brief"}).job
    assert job.thinking is thinking
    assert job.template_arguments == {"style": "brief"} | ({"reasoning_effort": effort} if effort else {})


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
        ("functions", [{}]),
        ("function_call", {"name": "x"}),
        ("best_of", 2),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
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
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": CANARY}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [call(CANARY)]}], "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "assistant", "tool_calls": [call("[1]")]}], "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "user", "content": "", "tool_calls": [call("{}")]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "content": "", "function_call": {"name": CANARY}}], "messages[0].function_call"),
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
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 2.5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("top_logprobs", 21),
        ("top_logprobs", 3),
        ("n", 0),
        ("n", 5),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "web_search", "function": {"name": "x"}}]),
        ("tools", [tool("not a name")]),
        ("tools", [tool("x" * 65)]),
        ("tools", [tool("same"), tool("same")]),
        ("tools", [tool(f"tool_{number}") for number in range(129)]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": CANARY}}),
        ("tool_choice", CANARY),
        ("parallel_tool_calls", "no"),
        ("response_format", {"type": CANARY}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"x": "y" * 131_072}}}),
        ("reasoning_effort", "much"),
        ("chat_template_kwargs", {"a b": 1}),
        ("chat_template_kwargs", {"a": [1]}),
        ("chat_template_kwargs", {"a": "x" * 257}),
        ("chat_template_kwargs", {f"name_{number}": 1 for number in range(17)}),
        ("cache_salt", "a" * 63),
        ("cache_salt", "A" * 64),
    ],
)
def test_values_outside_their_range_are_refused_by_name(member: str, value: object) -> None:
    text = refusal(body(**{member: value}))
    assert text.startswith(member)
    assert CANARY not in text


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"' + CANARY.encode() + b'"', b"\xff\xfe", b"null", b"[" * 100_000, b'{"model":"\xff"}']
)
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    assert CANARY not in refusal(raw)


def test_a_job_does_not_show_texts_in_its_repr() -> None:
    request = parse(body(messages=[{"role": "user", "content": CANARY}], stop=[CANARY]))
    assert CANARY not in repr(request)
