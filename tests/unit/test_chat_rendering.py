from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.answers import (
    ChosenToken,
    LikelyToken,
    ProviderDelta,
    ProviderFunction,
    ProviderLogprobs,
    ProviderMessage,
    ProviderToolCall,
    Whole,
    WholeChoice,
)
from api.consumer.attempt import Started
from api.consumer.chat_rendering import DONE, ChatAnswer, usage_of
from api.consumer.expected import Expected
from api.consumer.inference import Finished
from api.consumer.rendering import proofs_of
from domain.errors import AttemptTimedOut, ProviderFailed
from domain.protocol import Usage
from tests.support.examples import snapshot

JOB = "7d1c2b1e-0000-4000-8000-000000000001"
HASH = "16d4896cf382b5a2c552369c6e5d3d2be58f0595bee3fababc6798ba08196721"
SIGNATURE = "MEQCIC27KeJjqmIeT86woAxlEwqrf7X6gs1u0zVIqYy3O/a8AiBJ9wXOfUNxyW+AR3yeRRk8snYi3xSkDuH+CCGdwp+HBQ=="
STARTED = Started(snapshot(), JOB, {})
FINISHED = Finished(Usage(12, 3), HASH, SIGNATURE)
UNSIGNED = Finished(Usage(12, 3), HASH, "")
HEAD = b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1777500000,"model":"M"' % JOB.encode()
USAGE = (
    b'"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15,'
    b'"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}'
)
PROOFS = b'"se_signature":"%b","response_hash":"%b"' % (SIGNATURE.encode(), HASH.encode())


def stream(*, include_usage: bool = False, model: str = "M", choices: int = 1, logprobs: bool = False) -> ChatAnswer:
    expected = Expected(stream=True, choices=choices, logprobs=logprobs)
    return ChatAnswer(model=model, created=1_777_500_000, include_usage=include_usage, expected=expected)


def said(content: str | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> ProviderDelta:
    return ProviderDelta(index, ProviderMessage(content=content, **more), finish)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The JSON events of a stream, each checked to be one line with a blank one behind it."""
    assert raw.endswith(b"\n\n")
    found = []
    for event in raw.removesuffix(DONE).split(b"\n\n"):
        if event:
            assert event.startswith(b"data: ")
            assert b"\n" not in event
            found.append(json.loads(event[6:]))
    return found


class TestStreams:
    def test_a_whole_stream_byte_by_byte(self) -> None:
        rendering = stream(include_usage=True)
        assert rendering.start(STARTED) == (
            HEAD + b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}]}\n\n'
        )
        assert rendering.delta((said("", role="assistant"),)) == b""
        assert rendering.delta((said("Hel"),)) == (
            HEAD + b',"choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}\n\n'
        )
        assert rendering.delta((said(finish="stop"),)) == b""
        assert rendering.finish(FINISHED) == (
            HEAD
            + b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],'
            + PROOFS
            + b"}\n\n"
            + HEAD
            + b',"choices":[],'
            + USAGE
            + b","
            + PROOFS
            + b"}\n\n"
            + b"data: [DONE]\n\n"
        )

    def test_the_usage_chunk_comes_only_when_it_was_asked_for(self) -> None:
        rendering = stream()
        rendering.start(STARTED)
        rendering.delta((said("Hi", finish="length"),))
        assert rendering.finish(UNSIGNED) == (
            HEAD + b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\n' + DONE
        )

    def test_a_finish_waits_for_the_money_even_beside_text(self) -> None:
        rendering = stream()
        rendering.start(STARTED)
        (event,) = events_of(rendering.delta((said("last", finish="stop"),)))
        assert event["choices"][0]["finish_reason"] is None
        assert event["choices"][0]["delta"] == {"content": "last"}

    def test_a_machine_that_gave_no_reason_stopped(self) -> None:
        rendering = stream()
        rendering.start(STARTED)
        (event,) = events_of(rendering.finish(UNSIGNED))
        assert event["choices"][0]["finish_reason"] == "stop"

    def test_each_choice_finishes_once_with_its_first_reason(self) -> None:
        rendering = stream(choices=2)
        rendering.start(STARTED)
        rendering.delta((said(index=1, finish="length"), said(index=0, finish="stop")))
        rendering.delta((said(index=1, finish="stop"),))
        finishes = [event["choices"][0] for event in events_of(rendering.finish(UNSIGNED))]
        assert [(choice["index"], choice["finish_reason"]) for choice in finishes] == [(0, "stop"), (1, "length")]

    @pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
    def test_reasoning_has_one_name_in_a_stream(self, name: str) -> None:
        rendering = stream()
        rendering.start(STARTED)
        (event,) = events_of(rendering.delta((said(**{name: "hm"}),)))
        assert event["choices"][0]["delta"] == {"reasoning_content": "hm"}

    def test_the_first_piece_of_a_tool_call_names_it_and_the_others_only_go_on(self) -> None:
        rendering = stream()
        rendering.start(STARTED)
        first = ProviderToolCall(0, "call_a", ProviderFunction("weather", ""))
        later = ProviderToolCall(0, None, ProviderFunction(None, '{"at"'))
        pieces = [events_of(rendering.delta((said(tool_calls=(call,)),)))[0] for call in (first, later)]
        assert [piece["choices"][0]["delta"]["tool_calls"] for piece in pieces] == [
            [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}}],
            [{"index": 0, "function": {"arguments": '{"at"'}}],
        ]

    def test_an_error_is_the_last_event_and_no_end_of_stream_follows(self) -> None:
        error = stream().error(ProviderFailed("The machine failed; nothing was charged."))
        assert error == (
            b'data: {"error":{"message":"The machine failed; nothing was charged.","type":"provider_error",'
            b'"code":"provider_error","param":null}}\n\n'
        )
        assert DONE not in error

    def test_a_timeout_is_named_as_such(self) -> None:
        (event,) = events_of(stream().error(AttemptTimedOut()))
        assert (event["error"]["type"], event["error"]["code"]) == ("timeout", "timeout")

    def test_a_keep_alive_is_a_comment(self) -> None:
        assert stream().keep_alive == b": keep-alive\n\n"

    @pytest.mark.parametrize("model", ['a"b', "a\\b", "a\nb", "é/😀", "data: [DONE]\n\n"])
    def test_a_models_name_cannot_break_out_of_its_event(self, model: str) -> None:
        rendering = stream(model=model)
        raw = rendering.start(STARTED) + rendering.delta((said("x"),)) + rendering.finish(UNSIGNED)
        assert {event["model"] for event in events_of(raw)} == {model}
        assert raw.count(DONE) == 1

    @given(
        st.lists(
            st.lists(
                st.builds(
                    ProviderDelta,
                    st.integers(0, 2),
                    st.builds(ProviderMessage, *[st.none() | st.text(max_size=10)] * 4),
                    st.none() | st.sampled_from(["stop", "length", "tool_calls"]),
                ),
                max_size=3,
            ),
            max_size=8,
        ),
        st.booleans(),
        st.sampled_from([FINISHED, UNSIGNED]),
    )
    def test_every_stream_keeps_the_rules(
        self, chunks: list[list[ProviderDelta]], include_usage: bool, finished: Finished
    ) -> None:
        # Given any chunks of a machine, when they are rendered from the start to the end,
        rendering = stream(include_usage=include_usage, choices=3)
        raw = rendering.start(STARTED)
        raw += b"".join(rendering.delta(tuple(choices)) for choices in chunks)
        raw += rendering.finish(finished)
        events = events_of(raw)
        # then every event has the same head, nothing that strict clients reject is null, and there is one end.
        for event in events:
            assert (event["id"], event["object"]) == (f"chatcmpl-{JOB}", "chat.completion.chunk")
            assert (event["created"], event["model"]) == (1_777_500_000, "M")
            assert event.get("usage", {}) is not None
            for choice in event["choices"]:
                assert None not in choice["delta"].values()
        assert raw.endswith(DONE)
        assert raw.count(DONE) == 1
        # One role a choice comes first; the text is all there, in order; each choice finishes once, at the end.
        roles = [event for event in events if event["choices"] and "role" in event["choices"][0]["delta"]]
        assert roles == events[:3]
        assert [event["choices"][0]["index"] for event in roles] == [0, 1, 2]
        for index in range(3):
            sent = "".join(one.delta.content or "" for choices in chunks for one in choices if one.index == index)
            assert sent == "".join(
                choice["delta"].get("content", "")
                for event in events
                for choice in event["choices"]
                if choice["index"] == index
            )
        finishes = [
            choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"] is not None
        ]
        assert finishes == [0, 1, 2]
        assert sum("usage" in event for event in events) == include_usage


LIKELY = ProviderLogprobs((ChosenToken("Hé", -0.5, (72, 195, 169), (LikelyToken("Ho", -1.5),)),))
LIKELY_JSON = (
    b'{"content":[{"token":"H\xc3\xa9","logprob":-0.5,"bytes":[72,195,169],"top_logprobs":'
    b'[{"token":"Ho","logprob":-1.5,"bytes":null}]}],"refusal":null}'
)


class TestLogprobs:
    def test_they_stand_beside_the_text_of_their_tokens(self) -> None:
        rendering = stream(logprobs=True)
        rendering.start(STARTED)
        raw = rendering.delta((ProviderDelta(0, ProviderMessage(content="Hé"), logprobs=LIKELY),))
        assert b'{"index":0,"delta":{"content":"H\xc3\xa9"},"logprobs":' + LIKELY_JSON in raw

    def test_a_token_that_is_no_text_yet_is_not_lost(self) -> None:
        rendering = stream(logprobs=True)
        rendering.start(STARTED)
        (event,) = events_of(rendering.delta((ProviderDelta(0, logprobs=LIKELY),)))
        assert event["choices"][0]["delta"] == {}
        assert event["choices"][0]["logprobs"]["content"][0]["token"] == "Hé"

    def test_what_nobody_asked_for_is_not_passed_on(self) -> None:
        rendering = stream()
        rendering.start(STARTED)
        assert rendering.delta((ProviderDelta(0, logprobs=LIKELY),)) == b""
        whole = Whole((WholeChoice(ProviderMessage(content="Hé"), logprobs=LIKELY),))
        assert json.loads(rendering.whole(STARTED, whole, FINISHED))["choices"][0]["logprobs"] is None

    def test_a_whole_answer_has_them_too(self) -> None:
        whole = Whole((WholeChoice(ProviderMessage(content="Hé"), logprobs=LIKELY),))
        assert LIKELY_JSON in stream(logprobs=True).whole(STARTED, whole, FINISHED)


class TestWholeAnswers:
    def body(self, message: ProviderMessage, finish: str | None = "stop", finished: Finished = FINISHED) -> bytes:
        whole = Whole((WholeChoice(message, 0, finish),))
        return stream().whole(STARTED, whole, finished)

    def test_choices_come_in_the_order_of_their_numbers(self) -> None:
        whole = Whole(tuple(WholeChoice(ProviderMessage(content=str(index)), index) for index in (1, 0)))
        choices = json.loads(stream(choices=2).whole(STARTED, whole, FINISHED))["choices"]
        assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, "0"), (1, "1")]

    def test_what_was_cached_and_thought_stands_in_the_usage(self) -> None:
        usage = usage_of(Finished(Usage(12, 9, 8, 5), "", ""))
        assert usage["prompt_tokens_details"] == {"cached_tokens": 8}
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}

    def test_a_whole_answer_byte_by_byte(self) -> None:
        assert self.body(ProviderMessage(role="assistant", content="Hello.")) == (
            b'{"id":"chatcmpl-%b","object":"chat.completion","created":1777500000,"model":"M","choices":[{"index":0,'
            b'"message":{"role":"assistant","content":"Hello.","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
            b"%b,%b}" % (JOB.encode(), USAGE, PROOFS)
        )

    def test_missing_text_is_empty_and_a_missing_reason_is_stop(self) -> None:
        answer = json.loads(self.body(ProviderMessage(), None))
        assert answer["choices"][0]["message"]["content"] == ""
        assert answer["choices"][0]["finish_reason"] == "stop"

    def test_reasoning_is_given_under_both_names(self) -> None:
        message = json.loads(self.body(ProviderMessage(content="4", reasoning="2+2")))["choices"][0]["message"]
        assert (message["reasoning"], message["reasoning_content"]) == ("2+2", "2+2")

    def test_without_a_proof_no_proof_is_mentioned(self) -> None:
        answer = json.loads(self.body(ProviderMessage(content="4"), finished=UNSIGNED))
        assert not answer.keys() & {"se_signature", "response_hash"}

    def test_tool_calls_stand_where_there_is_no_text(self) -> None:
        call = ProviderToolCall(id="call_a", function=ProviderFunction("weather", '{"at":"sea"}'))
        choice = json.loads(self.body(ProviderMessage(tool_calls=(call,)), "tool_calls"))["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["tool_calls"] == [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"at":"sea"}'}}
        ]

    def test_what_was_charged_stands_in_the_usage_once_it_is_known(self) -> None:
        assert usage_of(Finished(Usage(1, 1), "", "", 123))["cost_micro_usd"] == 123
        assert "cost_micro_usd" not in usage_of(Finished(Usage(1, 1), "", ""))

    def test_the_total_is_the_sum(self) -> None:
        usage = usage_of(Finished(Usage(2**52, 2**52), "", ""))
        assert usage["total_tokens"] == 2**53


class TestProofs:
    def test_both_are_passed_on_as_they_came(self) -> None:
        assert proofs_of(FINISHED) == {"se_signature": SIGNATURE, "response_hash": HASH}

    @pytest.mark.parametrize(
        ("response_hash", "signature"),
        [
            (HASH, ""),
            ("", SIGNATURE),
            ("", ""),
            (HASH.upper(), SIGNATURE),
            (HASH[:-1], SIGNATURE),
            (HASH + "0", SIGNATURE),
            (HASH + "\n", SIGNATURE),
            (HASH, SIGNATURE + "\r\nSet-Cookie: x=1"),
            (HASH, SIGNATURE + "\n"),
            (HASH, "sig nature"),
            (HASH, "é"),
            (HASH, "A" * 300),
        ],
    )
    def test_what_does_not_look_like_proofs_never_reaches_a_header(self, response_hash: str, signature: str) -> None:
        assert proofs_of(Finished(Usage(1, 1), response_hash, signature)) == {}
