"""The Responses dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.consumer.answers import ProviderDelta, ProviderFunction, ProviderMessage, ProviderToolCall, Whole, WholeChoice
from api.consumer.attempt import Started
from api.consumer.chat_rendering import ChatAnswer
from api.consumer.chat_request import body_for_machine
from api.consumer.inference import Finished
from api.consumer.responses import read_conversation
from api.consumer.responses_rendering import ResponsesAnswer, read_responses
from api.consumer.responses_request import parse_responses
from domain.errors import InvalidRequest, ProviderFailed
from domain.protocol import Usage
from tests.support.examples import snapshot

STARTED = Started(snapshot(), "0a-1b", {})
HASH = "ab" * 32
FINISHED = Finished(Usage(9, 1), HASH, "c2ln")
ASK = {"model": "M", "input": "hello"}


def lowered(**members: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(body_for_machine(parse_responses(ASK | members).chat, 16, "salt"))
    return body


def chat_call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def answer(**members: Any) -> Any:
    return read_responses(ASK | members).renderer


def delta(finish: str | None = None, **message: Any) -> tuple[ProviderDelta, ...]:
    return (ProviderDelta(0, ProviderMessage(**message), finish),)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    events = []
    for event in raw.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        events.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


def whole_stream(rendering: ResponsesAnswer, *deltas: tuple[ProviderDelta, ...]) -> list[dict[str, Any]]:
    raw = rendering.start(STARTED) + b"".join(rendering.delta(choices) for choices in deltas)
    return events_of(raw + rendering.finish(FINISHED))


class TestRequests:
    def test_a_text_becomes_the_message_of_a_user(self) -> None:
        assert lowered() == {
            "model": "M",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 16,
            "cache_salt": "salt",
        }

    def test_items_become_messages_behind_the_instructions(self) -> None:
        items = [
            {"role": "developer", "content": "rules"},
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
            },
            {"type": "reasoning", "summary": []},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "c", "annotations": []}],
            },
            {"type": None, "content": "d"},
        ]
        assert lowered(input=items, instructions="Be brief.")["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "rules"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ]

    def test_calls_and_their_results_become_messages(self) -> None:
        items = [
            {"type": "function_call", "call_id": "call_a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_a", "output": "5"},
        ]
        assert lowered(input=items)["messages"] == [
            {"role": "assistant", "content": None, "tool_calls": [chat_call("call_a")]},
            {"role": "tool", "tool_call_id": "call_a", "content": "5"},
        ]

    def test_what_the_assistant_said_and_called_in_one_turn_is_one_message(self) -> None:
        items = [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "Both:"},
            {"type": "function_call", "call_id": "call_a", "name": "f", "arguments": "{}"},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "call_b", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_a", "output": "5"},
            {"type": "function_call", "call_id": "call_c", "name": "f", "arguments": "{}"},
        ]
        assert lowered(input=items)["messages"][1:] == [
            {"role": "assistant", "content": "Both:", "tool_calls": [chat_call("call_a"), chat_call("call_b")]},
            {"role": "tool", "tool_call_id": "call_a", "content": "5"},
            {"role": "assistant", "content": None, "tool_calls": [chat_call("call_c")]},
        ]

    def test_tools_and_formats_become_those_of_a_chat(self) -> None:
        function = {"name": "f", "description": "Does it.", "parameters": {"type": "object"}, "strict": True}
        schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
        body = lowered(
            tools=[{"type": "function", **function}],
            tool_choice={"type": "function", "name": "f"},
            parallel_tool_calls=False,
            reasoning={"effort": "low", "summary": "auto"},
        )
        assert body["tools"] == [{"type": "function", "function": function}]
        assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
        assert body["parallel_tool_calls"] is False
        assert body["reasoning_effort"] == "low"
        formatted = lowered(text={"format": {"type": "json_schema", **schema}})
        assert formatted["response_format"] == {"type": "json_schema", "json_schema": schema}

    @pytest.mark.parametrize(
        ("members", "asked"),
        [
            ({}, None),
            ({"include": []}, None),
            ({"top_logprobs": 0}, None),
            ({"include": ["message.output_text.logprobs"]}, 0),
            ({"top_logprobs": 3.0}, 3),
        ],
    )
    def test_log_probabilities_are_asked_for_in_the_words_of_a_chat(
        self, members: dict[str, Any], asked: int | None
    ) -> None:
        body = lowered(**members)
        assert (body.get("logprobs", False), body.get("top_logprobs")) == (asked is not None, asked)
        assert "include" not in body

    def test_the_output_limit_is_sent_under_one_name(self) -> None:
        request = parse_responses(ASK | {"max_output_tokens": 5})
        assert request.chat.output_limit == 5
        assert "max_output_tokens" not in json.loads(body_for_machine(request.chat, 5, "salt"))

    @pytest.mark.parametrize(
        ("members", "param"),
        [
            ({"model": 5}, "model"),
            ({"input": ""}, "input"),
            ({"input": []}, "input"),
            ({"input": 5}, "input"),
            ({"input": [5]}, "input"),
            ({"input": [{"type": "reasoning"}]}, "input"),
            ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
            ({"input": [{"type": {}, "id": "x"}]}, "input"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
            ({"input": [{"role": "nobody", "content": "a"}]}, "input"),
            ({"input": [{"type": "function_call", "call_id": "a", "name": "f g", "arguments": "{}"}]}, "input"),
            ({"input": [{"type": "function_call_output", "call_id": "", "output": "5"}]}, "input"),
            ({"instructions": ["x"]}, "instructions"),
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"conversation": "c"}, "conversation"),
            ({"background": True}, "background"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"include": ["reasoning.encrypted_content"]}, "include"),
            ({"truncation": "auto"}, "truncation"),
            ({"max_output_tokens": -1}, "max_output_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "thing"}}]}, "tools"),
            ({"tools": [{"type": "web_search"}]}, "tools"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
            ({"text": {"format": {"type": "xml"}}}, "text"),
            ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "thing"}}}}, "text"),
            ({"text": {"verbosity": "low"}}, "text"),
            ({"text": {"format": {"type": "json_object"}}, "tools": [{"type": "function", "name": "f"}]}, "text"),
            ({"reasoning": {"effort": "enormous"}}, "reasoning"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"n": 2}, "n"),
            ({"logprobs": True}, "logprobs"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name(self, members: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            parse_responses(ASK | members)
        assert refused.value.param == param
        assert f"'{param}'" in refused.value.message or param in refused.value.message

    @pytest.mark.parametrize(
        "members",
        [
            {"store": True, "background": False, "include": [], "truncation": "disabled"},
            {"text": {"format": {"type": "text"}}, "reasoning": {"effort": None, "summary": "auto"}},
            {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "metadata": {"a": "b"}},
        ],
    )
    def test_what_asks_for_nothing_is_let_through(self, members: dict[str, Any]) -> None:
        assert lowered(**members)["messages"] == [{"role": "user", "content": "hello"}]

    def test_a_body_with_messages_is_a_chat_on_both_paths(self) -> None:
        messages = [{"role": "user", "content": "hello"}]
        assert isinstance(read_conversation({"model": "M", "messages": messages, "input": "x"}).renderer, ChatAnswer)
        assert isinstance(read_conversation({"model": "M", "messages": [], "input": "x"}).renderer, ResponsesAnswer)
        with pytest.raises(InvalidRequest) as refused:
            read_conversation({"model": "M"})
        assert refused.value.param == "messages"


class TestStreams:
    def test_events_are_numbered_and_build_up_one_response(self) -> None:
        events = whole_stream(answer(), delta(content="Hel"), delta(content="lo"), delta("stop"))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"].removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert {event["response"]["id"] for event in events if "response" in event} == {"resp_0a1b"}
        assert events[0]["response"]["output"] == []
        assert events[0]["response"]["status"] == "in_progress"
        assert events[2]["item"] == {
            "id": "msg_0a1b_0",
            "status": "in_progress",
            "type": "message",
            "role": "assistant",
            "content": [],
        }
        assert events[6]["text"] == "Hello"
        done = events[-1]["response"]
        assert done["output"] == [events[-2]["item"]]
        assert done["output"][0]["content"] == [{"type": "output_text", "text": "Hello", "annotations": []}]
        assert done["usage"]["total_tokens"] == 10
        assert (done["se_signature"], done["response_hash"]) == ("c2ln", HASH)

    def test_reasoning_and_calls_are_items_of_their_own(self) -> None:
        call = ProviderToolCall(0, "call_a", ProviderFunction("f", "{}"))
        events = whole_stream(
            answer(), delta(reasoning="hm"), delta(content="a"), delta("tool_calls", tool_calls=(call,))
        )
        items = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
        assert items == ["rs_0a1b_0", "msg_0a1b_1", "fc_0a1b_2"]
        reasoning = [event["type"].removeprefix("response.") for event in events if event.get("output_index") == 0]
        assert reasoning == [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ]
        calling = [event["type"].removeprefix("response.") for event in events if event.get("output_index") == 2]
        assert calling == [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ]
        assert events[-1]["response"]["output"][2]["arguments"] == "{}"

    def test_an_answer_that_met_its_limit_is_incomplete(self) -> None:
        last = whole_stream(answer(), delta("length", content="Hel"))[-1]
        assert last["type"] == "response.incomplete"
        assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        assert last["response"]["output"][0]["status"] == "incomplete"

    def test_a_failure_is_the_last_event(self) -> None:
        rendering = answer()
        rendering.start(STARTED)
        (failed,) = events_of(rendering.error(ProviderFailed("The machine failed.")))
        assert failed["type"] == "response.failed"
        assert failed["sequence_number"] == 2
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {"code": "provider_error", "message": "The machine failed."}


def test_a_whole_answer_has_every_member_that_the_sdk_expects() -> None:
    whole = Whole((WholeChoice(ProviderMessage(content="Hi", reasoning="hm"), 0, "stop"),))
    body = json.loads(answer(instructions="Be brief.", max_output_tokens=5).whole(STARTED, whole, FINISHED))
    assert body["id"] == "resp_0a1b"
    assert body["status"] == "completed"
    assert (body["error"], body["incomplete_details"]) == (None, None)
    assert (body["instructions"], body["max_output_tokens"]) == ("Be brief.", 5)
    assert (body["parallel_tool_calls"], body["tool_choice"], body["tools"]) == (True, "auto", [])
    assert [item["type"] for item in body["output"]] == ["reasoning", "message"]
    assert body["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert body["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
