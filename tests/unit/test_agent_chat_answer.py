"""A chat completion's chunks."""

from __future__ import annotations

import json
from typing import Any

from agent.dialects.chat_answer import StreamedAnswer, WholeAnswer
from agent.engine.job import Alternative, CallHead, ChoiceEnd, Finished, Piece, TokenLogprob

LOGPROBS = (TokenLogprob(Alternative("H", b"H", -0.5), (Alternative("H", b"H", -0.5), Alternative("J", b"J", -2.0))),)
WRITTEN_LOGPROBS = {
    "content": [
        {
            "token": "H",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [
                {"token": "H", "logprob": -0.5, "bytes": [72]},
                {"token": "J", "logprob": -2.0, "bytes": [74]},
            ],
        }
    ]
}
CALL = (
    Piece("", 1, channel="tool_call", head=CallHead("call_1", "look")),
    Piece('{"a"', 2, channel="tool_call"),
    Piece(": 1}", 3, channel="tool_call"),
    Piece("{}", 4, channel="tool_call", call=1, head=CallHead("call_2", "say")),
)


def payload(chunk: bytes) -> dict[str, Any]:
    assert chunk.startswith(b"data: ")
    assert b"\n" not in chunk
    decoded: dict[str, Any] = json.loads(chunk.removeprefix(b"data: "))
    return decoded


def choices(chunks: list[bytes]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in payload(chunk)["choices"]]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    answer = StreamedAnswer("job-1", "tiny", 1_700_000_000)
    chunks = [*answer.piece(Piece("Hel", 1)), *answer.piece(Piece("lo", 2)), *answer.end(ChoiceEnd("stop"))]
    chunks += answer.finish(Finished(3, 2))
    payloads = [payload(chunk) for chunk in chunks]
    assert [item["choices"][0] for item in payloads] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},
        {"index": 0, "delta": {"content": "Hel"}, "finish_reason": None},
        {"index": 0, "delta": {"content": "lo"}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    for item in payloads:
        assert item["id"] == "chatcmpl-job-1"
        assert item["object"] == "chat.completion.chunk"
        assert (item["created"], item["model"]) == (1_700_000_000, "tiny")


def test_an_empty_stream_still_has_its_role() -> None:
    chunks = StreamedAnswer("job-1", "tiny", 0).end(ChoiceEnd("stop"))
    assert [choice["delta"] for choice in choices(chunks)] == [{"role": "assistant", "content": ""}, {}]


def test_each_choice_of_a_stream_has_its_own_role_and_end() -> None:
    answer = StreamedAnswer("job-1", "tiny", 0)
    chunks = [*answer.piece(Piece("a", 1, choice=1)), *answer.piece(Piece("b", 1))]
    chunks += [*answer.end(ChoiceEnd("length", 1)), *answer.end(ChoiceEnd("stop", stop_text="\n"))]
    assert [(choice["index"], choice["delta"].get("role")) for choice in choices(chunks)] == [
        (1, "assistant"),
        (1, None),
        (0, "assistant"),
        (0, None),
        (1, None),
        (0, None),
    ]
    assert choices(chunks)[-1] == {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "\n"}


def test_a_streamed_call_has_its_name_first_and_then_arguments_in_pieces() -> None:
    answer = StreamedAnswer("job-1", "tiny", 0)
    chunks = [chunk for piece in CALL for chunk in answer.piece(piece)]
    assert [choice["delta"] for choice in choices(chunks)[1:]] == [
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "call_2", "type": "function", "function": {"name": "say", "arguments": "{}"}}
            ]
        },
    ]


def test_streamed_thoughts_and_log_probabilities_have_their_members() -> None:
    answer = StreamedAnswer("job-1", "tiny", 0)
    chunks = [*answer.piece(Piece("hm", 1, channel="reasoning")), *answer.piece(Piece("H", 2, logprobs=LOGPROBS))]
    assert choices(chunks)[1:] == [
        {"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None},
        {"index": 0, "delta": {"content": "H"}, "logprobs": WRITTEN_LOGPROBS, "finish_reason": None},
    ]


def test_a_whole_answer_is_one_chunk_with_its_usage() -> None:
    answer = WholeAnswer("job-1", "tiny", 5)
    assert answer.piece(Piece("Hel", 1)) == answer.piece(Piece('lo\n"', 2)) == answer.end(ChoiceEnd("length")) == []
    (chunk,) = answer.finish(Finished(3, 2, cached_tokens=2, reasoning_tokens=1))
    assert payload(chunk) == {
        "id": "chatcmpl-job-1",
        "object": "chat.completion",
        "created": 5,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": 'Hello\n"'}, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


def test_a_whole_answer_holds_calls_thoughts_and_log_probabilities() -> None:
    answer = WholeAnswer("job-1", "tiny", 5)
    answer.piece(Piece("hm", 1, choice=1, channel="reasoning"))
    answer.piece(Piece("H", 2, choice=1, logprobs=LOGPROBS))
    answer.end(ChoiceEnd("stop", 1, stop_text="."))
    for piece in CALL:
        answer.piece(piece)
    answer.end(ChoiceEnd("tool_calls"))
    assert choices(answer.finish(Finished(3, 2))) == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
                    {"id": "call_2", "type": "function", "function": {"name": "say", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": "H", "reasoning_content": "hm"},
            "logprobs": WRITTEN_LOGPROBS,
            "finish_reason": "stop",
            "stop_reason": ".",
        },
    ]
