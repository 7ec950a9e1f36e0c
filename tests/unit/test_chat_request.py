from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dialects import chat_request as agent_chat_request
from api.consumer.chat_request import body_for_machine, parse_chat, provider_serials
from api.consumer.expected import Expected
from domain.errors import InvalidRequest

HELLO: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "Hello"}]}
SECRET = "the-secret-of-a-prompt"
SALT = "5a" * 32
CALL: dict[str, Any] = {"id": "call", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def body(**changes: Any) -> dict[str, Any]:
    return {**HELLO, **changes}


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


TOOL = tool("f")
HANDED_ON: list[dict[str, Any]] = [
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}},
    {"n": 4},
    {"n": 1.0},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 20},
    {"logit_bias": {"5": -100, "70000": 0.5}},
    {"top_k": -1},
    {"top_k": 40},
    {"min_p": 0.05},
    {"repetition_penalty": 1.2},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "high"},
    {"chat_template_kwargs": {"enable_thinking": False, "style": "plain", "budget": 5, "other": None}},
    {"messages": [*HELLO["messages"], CALLED, {"role": "tool", "tool_call_id": "call", "content": "5"}]},
]


def refusal(**changes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parse_chat(body(**changes))
    return refused.value


class TestWhatIsRead:
    def test_the_smallest_request(self) -> None:
        request = parse_chat(body())
        assert (request.model, request.include_usage) == ("model", False)
        assert (request.output_limit, request.message_count) == (None, 1)
        assert request.expected == Expected(stream=False)

    def test_a_stream_with_usage(self) -> None:
        request = parse_chat(body(stream=True, stream_options={"include_usage": True}))
        assert (request.expected.stream, request.include_usage) == (True, True)

    @pytest.mark.parametrize(
        ("limits", "limit"),
        [
            ({"max_tokens": 7}, 7),
            ({"max_completion_tokens": 8}, 8),
            ({"max_output_tokens": 9}, 9),
            ({"max_tokens": 7, "max_completion_tokens": 8, "max_output_tokens": 9}, 7),
            ({"max_completion_tokens": 8, "max_output_tokens": 9}, 8),
            ({"max_tokens": 0, "max_completion_tokens": 8}, 8),
            ({"max_tokens": None, "max_output_tokens": 9}, 9),
            ({"max_tokens": 0}, None),
            ({"max_tokens": 2**31 - 1}, 2**31 - 1),
        ],
    )
    def test_the_first_limit_that_is_set_counts(self, limits: dict[str, Any], limit: int | None) -> None:
        assert parse_chat(body(**limits)).output_limit == limit

    @pytest.mark.parametrize(
        "name",
        [
            "stream",
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "max_output_tokens",
            "temperature",
            "top_p",
            "stop",
            "seed",
            "frequency_penalty",
            "presence_penalty",
            "response_format",
            "n",
            "logprobs",
            "top_logprobs",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "logit_bias",
            "top_k",
            "min_p",
            "reasoning_effort",
            "chat_template_kwargs",
            "provider_serial",
        ],
    )
    def test_null_is_the_same_as_absent(self, name: str) -> None:
        request = parse_chat(body(**{name: None}))
        assert (request.output_limit, request.expected) == (None, Expected(stream=False))

    @pytest.mark.parametrize(("stop", "longest"), [("é", 2), (["a", "bcd"], 3), ([], 0), (["x"] * 4, 1)])
    def test_the_longest_stop_sequence_is_measured_in_bytes(self, stop: Any, longest: int) -> None:
        assert parse_chat(body(stop=stop)).expected.stop_bytes == longest

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "system", "content": ""},
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": None},
            {"role": "assistant"},
            {"role": "tool", "content": "42", "tool_call_id": "call"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "x", "name": "ada"},
        ],
    )
    def test_every_form_of_a_text_message(self, message: dict[str, Any]) -> None:
        assert parse_chat(body(messages=[message])).message_count == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"temperature": 0},
            {"temperature": 2},
            {"temperature": 0.7},
            {"top_p": 1},
            {"top_p": 0.0001},
            {"frequency_penalty": -2},
            {"presence_penalty": 2.0},
            {"seed": 0},
            {"seed": -(2**63)},
            {"seed": 2**63 - 1},
            {"response_format": {"type": "text"}},
            {"n": 1},
            {"logprobs": False},
            {"top_logprobs": 0},
            {"tools": [], "tool_choice": "none"},
            {"logit_bias": {}},
            {"user": "ada", "metadata": {"k": "v"}, "store": True, "service_tier": "auto"},
            {"colour": "green"},
        ],
    )
    def test_values_at_the_edges_and_members_that_ask_for_nothing(self, changes: dict[str, Any]) -> None:
        parse_chat(body(**changes))

    def test_a_whole_number_may_be_written_with_a_point(self) -> None:
        chat = parse_chat(body(max_tokens=2.0, seed=5.0, n=2.0, top_k=3.0, logprobs=True, top_logprobs=4.0))
        assert (chat.output_limit, chat.expected.choices) == (2, 2)
        sent = body_for_machine(chat, 2, SALT)
        for name, value in ((b"seed", 5), (b"n", 2), (b"top_k", 3), (b"top_logprobs", 4)):
            assert b'"%b":%d,' % (name, value) in sent

    def test_what_the_answer_must_be_follows_from_what_was_asked(self) -> None:
        asked = body(stream=True, n=3, stop=["end", "é"], tools=[tool("f"), tool("g")], logprobs=True)
        assert parse_chat(asked).expected == Expected(True, 3, 3, frozenset({"f", "g"}), logprobs=True)

    @pytest.mark.parametrize("changes", HANDED_ON)
    def test_what_is_handed_on_to_machines(self, changes: dict[str, Any]) -> None:
        sent = json.loads(body_for_machine(parse_chat(body(**changes)), 77, SALT))
        assert {name: sent[name] for name in changes} == changes

    @pytest.mark.parametrize(
        ("members", "serials"),
        [
            ({}, ()),
            ({"provider_serial": " C02A "}, ("C02A",)),
            ({"provider_serials": ["C02A", "", "C02B", "C02A"]}, ("C02A", "C02B")),
            ({"provider_serial": ["C02A"], "provider_serials": "C02B"}, ("C02A", "C02B")),
        ],
    )
    def test_serial_numbers_are_trimmed_and_named_once(self, members: dict[str, Any], serials: tuple[str, ...]) -> None:
        assert provider_serials(body(**members)) == serials
        assert parse_chat(body(**members)).allowed == serials

    @pytest.mark.parametrize("name", ["provider_serial", "provider_serials"])
    @pytest.mark.parametrize("value", ["", " ", [], [""], ["C02A", 5], 5, {}, ["C02A"] * 65, "x" * 129])
    def test_what_names_no_machine_is_refused_by_name(self, name: str, value: Any) -> None:
        assert refusal(**{name: value}).param == name


class TestWhatIsRefused:
    @pytest.mark.parametrize("model", [None, "", 5, ["model"], {"id": "model"}, True])
    def test_a_model_that_is_no_name(self, model: Any) -> None:
        assert refusal(model=model).param == "model"

    def test_a_request_without_a_model(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            parse_chat({"messages": HELLO["messages"]})
        assert refused.value.param == "model"

    @pytest.mark.parametrize(
        "messages",
        [
            None,
            [],
            {},
            "Hello",
            5,
            ["Hello"],
            [None],
            [{}],
            [{"content": "x"}],
            [{"role": "robot", "content": "x"}],
            [{"role": None, "content": "x"}],
            [{"role": 5, "content": "x"}],
            [{"role": ["user"], "content": "x"}],
            [{"role": {"name": "user"}, "content": "x"}],
            [{"role": "user"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": 5}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": {}}],
            [{"role": "user", "content": ["x"]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
            [{"role": "user", "content": [{"text": "x"}]}],
            [{"role": "user", "content": "fine"}, {"role": "user", "content": [{"type": "audio"}]}],
        ],
    )
    def test_messages_that_are_none(self, messages: Any) -> None:
        refused = refusal(messages=messages)
        assert (refused.param, refused.type, refused.http_status) == ("messages", "invalid_request_error", 400)

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
    @pytest.mark.parametrize("value", [-1, 1.5, "5", True, False, [5], 2**31])
    def test_a_limit_that_is_no_number_of_tokens(self, name: str, value: Any) -> None:
        assert refusal(**{name: value}).param == name

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("stream", "true"),
            ("stream", 1),
            ("stream", []),
            ("stream_options", []),
            ("stream_options", True),
            ("stream_options", {"include_usage": "yes"}),
            ("temperature", -0.1),
            ("temperature", 2.1),
            ("temperature", "1"),
            ("temperature", True),
            ("top_p", 0),
            ("top_p", 1.1),
            ("top_p", -1),
            ("frequency_penalty", 2.1),
            ("presence_penalty", -2.1),
            ("presence_penalty", []),
            ("seed", 1.5),
            ("seed", "1"),
            ("n", 0),
            ("n", 5),
            ("n", 1.5),
            ("n", True),
            ("logprobs", 0),
            ("logprobs", "yes"),
            ("top_logprobs", -1),
            ("top_logprobs", 21),
            ("top_logprobs", 5),
            ("logit_bias", []),
            ("logit_bias", {"five": 1}),
            ("logit_bias", {"-5": 1}),
            ("logit_bias", {"5": 101}),
            ("logit_bias", {"5": True}),
            ("logit_bias", {"5": "1"}),
            ("logit_bias", {str(token): 1 for token in range(1_025)}),
            ("top_k", -2),
            ("top_k", 0.5),
            ("min_p", 1.1),
            ("min_p", True),
            ("repetition_penalty", 0),
            ("repetition_penalty", 2.1),
            ("reasoning_effort", "enormous"),
            ("reasoning_effort", 1),
            ("reasoning_effort", ["low"]),
            ("parallel_tool_calls", 1),
            ("tools", {}),
            ("tools", [5]),
            ("tools", [{"type": "function"}]),
            ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
            ("tools", [{"type": "function", "function": {"name": "f g"}}]),
            ("tools", [{"type": "function", "function": {"name": "x" * 65}}]),
            ("tools", [{"type": "function", "function": {"name": "f", "description": 5}}]),
            ("tools", [{"type": "function", "function": {"name": "f", "strict": "yes"}}]),
            ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"type": "thing"}}}]),
            ("tools", [TOOL, TOOL]),
            ("tools", [{"type": "function", "function": {"name": f"f{number}"}} for number in range(129)]),
            ("tool_choice", "required"),
            ("tool_choice", "f"),
            ("tool_choice", 5),
            ("tool_choice", {"type": "function", "function": {"name": "f"}}),
            ("tool_choice", {"type": "allowed_tools"}),
            ("response_format", {"type": "xml"}),
            ("response_format", {"type": "json_schema"}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
            ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": 1}}),
            ("chat_template_kwargs", []),
            ("chat_template_kwargs", {"deep": {"er": 1}}),
            ("chat_template_kwargs", {"long": "x" * 257}),
            ("chat_template_kwargs", {"chat_template": "{{ messages }}"}),
            ("chat_template_kwargs", {"messages": None}),
            ("chat_template_kwargs", {"__class__": 1}),
            ("chat_template_kwargs", {f"a{number}": 1 for number in range(17)}),
            ("seed", True),
            ("seed", 2**63),
            ("stop", ""),
            ("stop", ["a", ""]),
            ("stop", ["a"] * 5),
            ("stop", [5]),
            ("stop", {"a": 1}),
            ("stop", 5),
            ("response_format", "text"),
        ],
    )
    def test_a_value_out_of_its_range_by_name(self, name: str, value: Any) -> None:
        assert refusal(**{name: value}).param == name

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("best_of", 2),
            ("functions", [{"name": "f"}]),
            ("function_call", "auto"),
            ("audio", {"voice": "v"}),
            ("min_trust", "hardware"),
        ],
    )
    def test_what_this_version_cannot_honour_by_name(self, name: str, value: Any) -> None:
        refused = refusal(**{name: value})
        assert refused.param == name
        assert "not supported" in refused.message or "Only" in refused.message

    @pytest.mark.parametrize(
        "changes",
        [
            {"messages": [{"role": SECRET, "content": SECRET}]},
            {"messages": [{"role": "user", "content": [{"type": SECRET, "text": SECRET}]}]},
            {"temperature": SECRET},
            {"stop": [SECRET, ""]},
            {"tools": [{"name": SECRET}]},
            {"response_format": {"type": SECRET}},
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {SECRET: 1, "type": SECRET}}}]},
            {"tool_choice": {"type": "function", "function": {"name": SECRET}}, "tools": [TOOL]},
            {"chat_template_kwargs": {SECRET: SECRET}},
            {"reasoning_effort": SECRET},
            {"logit_bias": {SECRET: SECRET}},
            {"model": [SECRET]},
        ],
    )
    def test_a_refusal_never_repeats_what_was_sent(self, changes: dict[str, Any]) -> None:
        assert SECRET not in refusal(**changes).message

    @given(
        st.dictionaries(
            st.sampled_from(
                ["model", "messages", "stream", "max_tokens", "temperature", "top_p", "stop", "n", "tools", "seed", "x"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text() | st.sampled_from(["role", "content", "type"]), inner, max_size=3)
                ),
            ),
        )
    )
    def test_any_json_object_is_either_read_or_refused(self, anything: dict[str, Any]) -> None:
        with contextlib.suppress(InvalidRequest):
            assert parse_chat(anything).message_count == len(anything["messages"])


texts = st.text(st.characters(codec="utf-8"), max_size=40)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "developer"]),
            "content": texts | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), min_size=1),
        }
    ),
    min_size=1,
    max_size=5,
)


class TestSizes:
    @pytest.mark.parametrize("name", ["response_format", "chat_template_kwargs"])
    def test_what_a_template_may_print_is_counted(self, name: str) -> None:
        values = {
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"title": "x" * 1_000}}},
            "chat_template_kwargs": {"style": "x" * 200},
        }
        more = parse_chat(body(**{name: values[name]})).prompt_bytes - parse_chat(body()).prompt_bytes
        assert more == len(json.dumps(values[name], separators=(",", ":")))

    @given(messages, st.dictionaries(st.sampled_from(["system", "instructions", "prompt", "input"]), texts))
    def test_the_prompts_bytes_are_never_fewer_than_those_of_its_texts(
        self, said: list[dict[str, Any]], more: dict[str, str]
    ) -> None:
        request = parse_chat(body(messages=said, **more))
        spoken = [part["text"] for one in said if isinstance(one["content"], list) for part in one["content"]]
        spoken += [one["content"] for one in said if isinstance(one["content"], str)]
        spoken += [one["role"] for one in said]
        assert request.prompt_bytes >= sum(len(text.encode()) for text in [*spoken, *more.values()])

    def test_bytes_are_counted_and_not_characters(self) -> None:
        plain = parse_chat(body(messages=[{"role": "user", "content": "a" * 100}]))
        wide = parse_chat(body(messages=[{"role": "user", "content": "😀" * 100}]))
        assert wide.prompt_bytes - plain.prompt_bytes == 300

    @pytest.mark.parametrize("name", ["system", "instructions", "input", "prompt"])
    def test_every_member_that_may_reach_the_prompt_is_counted(self, name: str) -> None:
        assert parse_chat(body(**{name: "x" * 1_000})).prompt_bytes >= parse_chat(body()).prompt_bytes + 1_000

    def test_the_estimate_is_a_quarter_of_the_messages_bytes(self) -> None:
        said = [{"role": "user", "content": "x" * 400}]
        assert parse_chat(body(messages=said)).prompt_estimate == len(json.dumps(said, separators=(",", ":"))) // 4


class TestTheBodyForTheMachine:
    def sent(self, **changes: Any) -> dict[str, Any]:
        return dict(json.loads(body_for_machine(parse_chat(body(**changes)), 77, SALT)))

    @pytest.mark.parametrize(
        "limits",
        [
            {},
            {"max_tokens": 5},
            {"max_completion_tokens": 5},
            {"max_output_tokens": 5},
            {"max_tokens": 1, "max_completion_tokens": 2, "max_output_tokens": 3},
        ],
    )
    def test_exactly_one_limit_goes_out_and_it_is_the_one_that_was_held_for(self, limits: dict[str, int]) -> None:
        sent = self.sent(**limits)
        assert {name for name in sent if name.startswith("max_")} == {"max_tokens"}
        assert sent["max_tokens"] == 77

    def test_nothing_that_names_the_caller_goes_out(self) -> None:
        callers = {
            "user": SECRET,
            "metadata": {"who": SECRET},
            "store": True,
            "service_tier": SECRET,
            "safety_identifier": SECRET,
            "prompt_cache_key": SECRET,
        }
        sent = self.sent(**callers, stream_options={"include_usage": True})
        assert not sent.keys() & {*callers, "stream_options"}
        assert SECRET not in json.dumps(sent)

    def test_everything_else_goes_out_unchanged(self) -> None:
        others: dict[str, Any] = {
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 5,
            "stream": True,
            "colour": {"green": [1, 2.5, None, "é"]},
            "large": 2**70,
        }
        sent = self.sent(**others)
        assert {name: sent[name] for name in others} == others
        assert sent["messages"] == HELLO["messages"]
        assert sent["model"] == "model"

    @pytest.mark.parametrize(("stop", "sent"), [("END", ["END"]), (["a", "b"], ["a", "b"])])
    def test_a_single_stop_becomes_a_list(self, stop: Any, sent: list[str]) -> None:
        assert self.sent(stop=stop)["stop"] == sent

    def test_the_consumers_own_body_is_not_touched(self) -> None:
        original = body(user="ada", stop="END", max_tokens=5)
        before = json.dumps(original)
        body_for_machine(parse_chat(original), 77, SALT)
        assert json.dumps(original) == before

    def test_a_consumer_cannot_say_which_endpoint_a_machine_should_take_it_for(self) -> None:
        assert "endpoint" not in self.sent(endpoint="/v1/messages")

    def test_a_consumer_cannot_share_what_machines_cached_of_somebody_else(self) -> None:
        assert self.sent(cache_salt=SECRET)["cache_salt"] == SALT


def test_a_format_does_not_go_together_with_tools() -> None:
    wanted = {"response_format": {"type": "json_object"}, "tools": [TOOL]}
    assert refusal(**wanted).param == "response_format"
    parse_chat(body(**wanted, tool_choice="none"))
    parse_chat(body(tools=[TOOL], response_format={"type": "text"}))


class TestCallsOfEarlierTurns:
    @pytest.mark.parametrize(
        "message",
        [
            CALLED | {"role": "user", "content": "x"},
            CALLED | {"tool_calls": {}},
            CALLED | {"tool_calls": [{"id": "call"}]},
            CALLED | {"tool_calls": [CALL | {"id": ""}]},
            CALLED | {"tool_calls": [CALL | {"id": "x" * 257}]},
            CALLED | {"tool_calls": [CALL | {"type": "custom"}]},
            CALLED | {"tool_calls": [CALL | {"function": {"name": "f"}}]},
            CALLED | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]},
            CALLED | {"tool_calls": [CALL | {"function": {"name": "f g", "arguments": "{}"}}]},
            CALLED | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": '{"cut'}}]},
            CALLED | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "[1]"}}]},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "tool", "content": "5"},
            {"role": "tool", "content": "5", "tool_call_id": 5},
        ],
    )
    def test_what_is_no_call_and_no_result_is_refused(self, message: dict[str, Any]) -> None:
        assert refusal(messages=[*HELLO["messages"], message]).param == "messages"


class TestAgainstTheAgent:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"stream": True, "stream_options": {"include_usage": True}, "stop": ["a", "b"], "seed": 2**63 - 1},
            {"temperature": 0, "top_p": 1e-300, "frequency_penalty": -2, "presence_penalty": 2},
            {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}]},
            {"messages": [{"role": "tool", "content": "42", "tool_call_id": "call"}]},
            {"messages": [{"role": "function", "content": "42", "name": "f"}]},
            {"messages": [{"role": "assistant", "content": None}]},
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "call"}]}]},
            {"n": 1.0, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "tools": [], "tool_choice": "none"},
            {"response_format": {"type": "text", "schema": {}}},
            {"stop": "x" * 2_000},
            {"reasoning_effort": "high"},
            {"modalities": ["text", "audio"]},
            {"prediction": {"type": "content", "content": "x"}},
            {"web_search_options": {}},
            {"best_of": 3},
            {"top_k": 5},
            {"min_p": 0.1},
            {"repetition_penalty": 1.2},
            {"endpoint": "/v1/messages"},
            *HANDED_ON,
        ],
        ids=lambda changes: ",".join(changes) or "plain",
    )
    def test_what_the_gateway_lets_through_the_agent_can_do(self, changes: dict[str, Any]) -> None:
        # What the agent cannot do must be refused here, by its name: later it is an error without one, after a hold.
        with contextlib.suppress(InvalidRequest):
            request = parse_chat(body(**changes))
            agent_chat_request.parse(body_for_machine(request, 77, SALT))
