"""A chat completion's chunks."""

from __future__ import annotations

import json
from typing import Any

from agent.dialects.chat_answer import StreamedAnswer, WholeAnswer
from agent.engine.job import Finished


def payload(chunk: bytes) -> dict[str, Any]:
    assert chunk.startswith(b"data: ")
    assert b"\n" not in chunk
    decoded: dict[str, Any] = json.loads(chunk.removeprefix(b"data: "))
    return decoded


def test_a_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    answer = StreamedAnswer("job-1", "tiny", 1_700_000_000)
    chunks = [*answer.piece("Hel"), *answer.piece("lo"), *answer.finish(Finished("stop", 3, 2))]
    payloads = [payload(chunk) for chunk in chunks]
    assert [item["choices"][0]["delta"] for item in payloads] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [item["choices"][0]["finish_reason"] for item in payloads] == [None, None, None, "stop"]
    for item in payloads:
        assert item["id"] == "chatcmpl-job-1"
        assert item["object"] == "chat.completion.chunk"
        assert (item["created"], item["model"]) == (1_700_000_000, "tiny")
        assert item["choices"][0]["index"] == 0


def test_an_empty_stream_still_has_its_role() -> None:
    chunks = StreamedAnswer("job-1", "tiny", 0).finish(Finished("stop", 3, 0))
    assert [payload(chunk)["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]


def test_a_whole_answer_is_one_chunk_with_its_usage() -> None:
    answer = WholeAnswer("job-1", "tiny", 5)
    assert answer.piece("Hel") == answer.piece('lo\n"') == []
    (chunk,) = answer.finish(Finished("length", 3, 2))
    assert payload(chunk) == {
        "id": "chatcmpl-job-1",
        "object": "chat.completion",
        "created": 5,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": 'Hello\n"'}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
