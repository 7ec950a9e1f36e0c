"""Anthropic's dialect: what a body becomes for a machine, and what an answer becomes for the consumer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.consumer.answers import ProviderDelta, ProviderFunction, ProviderMessage, ProviderToolCall, Whole, WholeChoice
from api.consumer.attempt import Started
from api.consumer.chat_request import body_for_machine
from api.consumer.inference import Finished
from api.consumer.messages_rendering import PING, MessagesAnswer
from api.consumer.messages_request import parse_messages
from domain.errors import AttemptTimedOut, InvalidRequest, ProviderFailed
from domain.protocol import Usage
from tests.support.examples import snapshot

JOB = "7d1c2b1e-0000-4000-8000-000000000001"
HASH = "16d4896cf382b5a2c552369c6e5d3d2be58f0595bee3fababc6798ba08196721"
STARTED = Started(snapshot(), JOB, {})
FINISHED = Finished(Usage(12, 3), HASH, "c2ln")
ASK = {"model": "M", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}


def lowered(**members: Any) -> dict[str, Any]:
    """What a machine gets."""
    request = parse_messages(ASK | members)
    body: dict[str, Any] = json.loads(body_for_machine(request.chat, 16, "salt"))
    return body


def answer(**changes: Any) -> MessagesAnswer:
    values: dict[str, Any] = {"model": "M", "input_estimate": 11, "with_thinking": False, "stop_sequences": ()}
    return MessagesAnswer(**(values | changes))


def delta(finish: str | None = None, stop_reason: str | None = None, **message: Any) -> tuple[ProviderDelta, ...]:
    return (ProviderDelta(0, ProviderMessage(**message), finish, stop_reason),)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each checked to be named as its type and to be one line."""
    events = []
    for event in raw.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        events.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


class TestRequests:
    def test_a_plain_question_stays_one_message(self) -> None:
        assert lowered() == {
            "model": "M",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 16,
            "reasoning_effort": "none",
            "cache_salt": "salt",
        }

    @pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {}}]])
    def test_a_system_prompt_becomes_the_first_message(self, system: Any) -> None:
        first = lowered(system=system)["messages"][0]
        assert first["role"] == "system"
        assert first["content"] in ("Be brief.", [{"type": "text", "text": "Be brief."}])

    def test_the_system_prompt_counts_towards_the_hold(self) -> None:
        with_system = parse_messages(ASK | {"system": "x" * 1_000}).chat
        assert with_system.prompt_bytes >= parse_messages(ASK).chat.prompt_bytes + 1_000
        assert with_system.message_count == 2

    def test_a_missing_limit_is_8192(self) -> None:
        assert parse_messages({"model": "M", "messages": ASK["messages"]}).chat.output_limit == 8_192

    def test_up_to_16_stop_sequences_are_passed_on(self) -> None:
        stops = [f"stop{number}" for number in range(16)]
        assert lowered(stop_sequences=stops)["stop"] == stops

    def test_blocks_become_parts(self) -> None:
        blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
        (message,) = lowered(messages=[{"role": "user", "content": blocks}])["messages"]
        assert message["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    def test_earlier_thinking_is_dropped(self) -> None:
        blocks = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "4"}]
        messages = [*ASK["messages"], {"role": "assistant", "content": blocks}, *ASK["messages"]]  # type: ignore[misc]
        assert lowered(messages=messages)["messages"][1] == {
            "role": "assistant",
            "content": [{"type": "text", "text": "4"}],
        }

    def test_results_of_tools_come_before_what_the_user_says(self) -> None:
        use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True}
        messages = [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{"type": "text", "text": "well?"}, result]},
        ]
        assert lowered(messages=messages)["messages"][1:] == [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: no"},
            {"role": "user", "content": [{"type": "text", "text": "well?"}]},
        ]

    @pytest.mark.parametrize(
        ("members", "param"),
        [
            ({"model": None}, "model"),
            ({"messages": []}, "messages"),
            ({"messages": "hello"}, "messages"),
            ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
            ({"messages": [{"role": "user", "content": []}]}, "messages"),
            ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
            ({"messages": [{"role": "user", "content": [{"type": "new"}]}]}, "messages"),
            ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"temperature": 1.5}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"top_p": 2}, "top_p"),
            ({"top_k": -2}, "top_k"),
            ({"top_k": 1.5}, "top_k"),
            ({"stream": 1}, "stream"),
            ({"system": 5}, "system"),
            ({"system": [{"type": "image"}]}, "system"),
            ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
            ({"stop_sequences": "x"}, "stop_sequences"),
            ({"stop_sequences": [""]}, "stop_sequences"),
            ({"thinking": {"type": "loud"}}, "thinking"),
            ({"thinking": True}, "thinking"),
            ({"tools": [{"name": "f", "input_schema": {"type": "thing"}}]}, "tools"),
            ({"tools": [{"name": "f g"}]}, "tools"),
            ({"tools": [{"name": "f"}, {"name": "f"}]}, "tools"),
            ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
            ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [{"name": "f"}]}, "tool_choice"),
            ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"),
            ({"tools": {}}, "tools"),
            ({"tool_choice": {"type": "any"}}, "tool_choice"),
            ({"tool_choice": "auto"}, "tool_choice"),
            ({"container": "c"}, "container"),
            ({"mcp_servers": [{}]}, "mcp_servers"),
            ({"output_config": {"effort": "enormous"}}, "output_config"),
            ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
            ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
            ({"output_config": 5}, "output_config"),
            (
                {"output_config": {"format": {"type": "json_schema", "schema": {}}}, "tools": [{"name": "f"}]},
                "output_config",
            ),
            ({"output_format": {"type": "json_schema", "schema": {"type": "thing"}}}, "output_format"),
            ({"speed": "fast"}, "speed"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name(self, members: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            parse_messages(ASK | members)
        assert refused.value.param == param

    def test_what_names_the_caller_does_not_reach_a_machine(self) -> None:
        body = lowered(metadata={"user_id": "u"}, service_tier="auto", cache_control={}, user_profile_id="u")
        assert body.keys() == {"model", "messages", "max_tokens", "reasoning_effort", "cache_salt"}

    def test_what_means_nothing_in_this_dialect_does_not_reach_a_machine(self) -> None:
        chats_own = {"n": 3, "logprobs": True, "top_logprobs": 2, "response_format": {"type": "json_object"}}
        assert lowered(**chats_own) == lowered()
        assert parse_messages(ASK | chats_own).chat.expected.choices == 1

    @pytest.mark.parametrize(
        ("choice", "lowered_choice", "parallel"),
        [
            ({"type": "auto"}, "auto", None),
            ({"type": "any"}, "required", None),
            ({"type": "none"}, "none", None),
            ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}, None),
            ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ],
    )
    def test_tools_become_functions(self, choice: Any, lowered_choice: Any, parallel: bool | None) -> None:
        tool = {"name": "f", "description": "Does it.", "input_schema": {"type": "object"}, "cache_control": {}}
        body = lowered(tools=[tool, {"type": "custom", "name": "g"}], tool_choice=choice)
        assert [one["function"] for one in body["tools"]] == [
            {"name": "f", "parameters": {"type": "object"}, "description": "Does it."},
            {"name": "g", "parameters": {"type": "object"}},
        ]
        assert body["tool_choice"] == lowered_choice
        assert body.get("parallel_tool_calls") is parallel

    @pytest.mark.parametrize(
        ("members", "effort"),
        [
            ({}, "none"),
            ({"thinking": {"type": "disabled"}}, "none"),
            ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "medium"),
            ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "xhigh"),
            ({"output_config": {"effort": "low"}}, "low"),
        ],
    )
    def test_a_model_thinks_only_for_those_who_ask_for_it(self, members: dict[str, Any], effort: str) -> None:
        assert lowered(**members)["reasoning_effort"] == effort

    @pytest.mark.parametrize("name", ["output_config", "output_format"])
    def test_a_format_becomes_that_of_a_chat(self, name: str) -> None:
        given = {"type": "json_schema", "schema": {"type": "object"}}
        body = lowered(**{name: {"format": given} if name == "output_config" else given})
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


class TestStreams:
    def test_a_whole_stream_byte_by_byte(self) -> None:
        rendering = answer()
        assert rendering.start(STARTED) == (
            b"event: message_start\n"
            b'data: {"type":"message_start","message":{"id":"msg_7d1c2b1e000040008000000000000001","type":"message",'
            b'"role":"assistant","model":"M","content":[],"stop_reason":null,"stop_sequence":null,'
            b'"usage":{"input_tokens":11,"output_tokens":0}}}\n\n'
        )
        assert rendering.delta(delta(role="assistant", content="")) == b""
        assert rendering.delta(delta(content="Hel")) == (
            b"event: content_block_start\n"
            b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
            b'event: ping\ndata: {"type":"ping"}\n\n'
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}\n\n'
        )
        assert rendering.delta(delta("stop")) == b""
        assert rendering.finish(FINISHED) == (
            b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
            b"event: message_delta\n"
            b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
            b'"usage":{"input_tokens":12,"output_tokens":3},"se_signature":"c2ln","response_hash":"%b"}\n\n'
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n' % HASH.encode()
        )

    def test_a_silence_is_filled_with_pings(self) -> None:
        assert answer().keep_alive == PING

    def test_thinking_is_a_block_of_its_own_for_those_who_asked(self) -> None:
        shown, hidden = answer(with_thinking=True), answer()
        for rendering in (shown, hidden):
            rendering.start(STARTED)
        thought = delta(reasoning_content="hm")
        assert [event["type"] for event in events_of(shown.delta(thought))] == [
            "content_block_start",
            "ping",
            "content_block_delta",
        ]
        assert hidden.delta(thought) == b""
        assert [event.get("index") for event in events_of(shown.delta(delta(content="4")))] == [0, 1, 1]
        assert [event.get("index") for event in events_of(hidden.delta(delta(content="4")))] == [0, None, 0]

    def test_tool_calls_stream_their_arguments(self) -> None:
        rendering = answer()
        rendering.start(STARTED)
        first = delta(tool_calls=(ProviderToolCall(0, "call_a", ProviderFunction("f", '{"a"')),))
        later = delta(tool_calls=(ProviderToolCall(0, None, ProviderFunction(None, ":1}")),))
        events = events_of(rendering.delta(first) + rendering.delta(later) + rendering.delta(delta("tool_calls")))
        assert events[0]["content_block"] == {"type": "tool_use", "id": "call_a", "name": "f", "input": {}}
        assert [event["delta"] for event in events if event["type"] == "content_block_delta"] == [
            {"type": "input_json_delta", "partial_json": '{"a"'},
            {"type": "input_json_delta", "partial_json": ":1}"},
        ]
        assert events_of(rendering.finish(FINISHED))[1]["delta"]["stop_reason"] == "tool_use"

    @pytest.mark.parametrize(
        ("finish", "stop_reason", "expected"),
        [
            ("stop", None, ("end_turn", None)),
            ("stop", "END", ("stop_sequence", "END")),
            ("stop", "something else", ("end_turn", None)),
            ("length", None, ("max_tokens", None)),
            ("content_filter", None, ("refusal", None)),
            ("something new", None, ("end_turn", None)),
        ],
    )
    def test_the_reason_of_the_end(
        self, finish: str, stop_reason: str | None, expected: tuple[str, str | None]
    ) -> None:
        rendering = answer(stop_sequences=("END",))
        rendering.start(STARTED)
        rendering.delta(delta(finish, stop_reason, content="a"))
        end = events_of(rendering.finish(FINISHED))[1]["delta"]
        assert (end["stop_reason"], end["stop_sequence"]) == expected

    def test_a_failure_is_an_error_event(self) -> None:
        (failed,) = events_of(answer().error(ProviderFailed("The machine failed; nothing was charged.")))
        assert failed["error"]["type"] == "api_error"
        (late,) = events_of(answer().error(AttemptTimedOut()))
        assert late["error"]["type"] == "overloaded_error"


class TestWholeAnswers:
    def whole(self, message: ProviderMessage, finish: str | None = "stop", **changes: Any) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(
            answer(**changes).whole(STARTED, Whole((WholeChoice(message, 0, finish),)), FINISHED)
        )
        return body

    def test_a_whole_answer(self) -> None:
        assert self.whole(ProviderMessage(content="Hello.")) == {
            "id": "msg_7d1c2b1e000040008000000000000001",
            "type": "message",
            "role": "assistant",
            "model": "M",
            "content": [{"type": "text", "text": "Hello."}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 12, "output_tokens": 3},
            "se_signature": "c2ln",
            "response_hash": HASH,
        }

    def test_what_was_read_from_a_cache_is_counted_apart(self) -> None:
        finished = Finished(Usage(12, 3, cached_tokens=8), HASH, "")
        whole = Whole((WholeChoice(ProviderMessage(content="Hi"), 0, "stop"),))
        usage = json.loads(answer().whole(STARTED, whole, finished))["usage"]
        assert usage == {"input_tokens": 4, "output_tokens": 3, "cache_read_input_tokens": 8}

    def test_an_empty_answer_has_no_blocks(self) -> None:
        assert self.whole(ProviderMessage(content=""), None)["content"] == []

    def test_blocks_come_in_their_order(self) -> None:
        call = ProviderToolCall(None, "call_a", ProviderFunction("f", '{"a":1}'))
        message = ProviderMessage(content="4", reasoning="2+2", tool_calls=(call,))
        assert self.whole(message, "tool_calls", with_thinking=True)["content"] == [
            {"type": "thinking", "thinking": "2+2", "signature": ""},
            {"type": "text", "text": "4"},
            {"type": "tool_use", "id": "call_a", "name": "f", "input": {"a": 1}},
        ]

    @pytest.mark.parametrize(
        ("text", "shown"), [("", {}), ("nonsense", {"arguments": "nonsense"}), ("[1]", {"arguments": [1]})]
    )
    def test_arguments_that_are_no_object_are_not_lost(self, text: str, shown: dict[str, Any]) -> None:
        call = ProviderToolCall(None, "call_a", ProviderFunction("f", text))
        assert self.whole(ProviderMessage(tool_calls=(call,)))["content"][0]["input"] == shown
