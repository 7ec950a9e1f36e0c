from __future__ import annotations

from api.consumer.answers import ProviderFunction, ProviderMessage, ProviderToolCall
from api.consumer.segments import Closed, Opened, Said, Segments, Step, segments_of


def call(index: int | None, name: str | None = None, arguments: str | None = None) -> ProviderMessage:
    call_id = f"call_{name}" if name else None
    return ProviderMessage(tool_calls=(ProviderToolCall(index, call_id, ProviderFunction(name, arguments)),))


def steps_of(*messages: ProviderMessage, with_reasoning: bool = True) -> list[str]:
    segments = Segments(with_reasoning=with_reasoning)
    return [shown(step) for message in messages for step in segments.feed(message)] + [
        shown(step) for step in segments.close()
    ]


def shown(step: Step) -> str:
    match step:
        case Opened(segment):
            return f"open {segment.index} {segment.kind} {segment.name}".rstrip()
        case Said(segment, piece):
            return f"say {segment.index} {piece}"
        case Closed(segment):
            return f"close {segment.index} {segment.text}".rstrip()


def test_text_that_goes_on_stays_in_its_segment() -> None:
    assert steps_of(ProviderMessage(content="a"), ProviderMessage(content="b")) == [
        "open 0 text",
        "say 0 a",
        "say 0 b",
        "close 0 ab",
    ]


def test_one_segment_is_open_at_a_time() -> None:
    assert steps_of(
        ProviderMessage(reasoning_content="hm"), ProviderMessage(content="a"), call(0, "f", "{}"), call(1, "g", "")
    ) == [
        "open 0 reasoning",
        "say 0 hm",
        "close 0 hm",
        "open 1 text",
        "say 1 a",
        "close 1 a",
        "open 2 tool_call f",
        "say 2 {}",
        "close 2 {}",
        "open 3 tool_call g",
        "close 3",
    ]


def test_pieces_of_one_call_belong_together() -> None:
    assert steps_of(call(0, "f", "{"), call(0, None, "}")) == [
        "open 0 tool_call f",
        "say 0 {",
        "say 0 }",
        "close 0 {}",
    ]


def test_hidden_reasoning_leaves_no_gap_in_the_numbers() -> None:
    assert steps_of(ProviderMessage(reasoning="hm", content="a"), with_reasoning=False) == [
        "open 0 text",
        "say 0 a",
        "close 0 a",
    ]


def test_an_answer_without_anything_has_no_segment() -> None:
    assert steps_of(ProviderMessage(role="assistant", content="")) == []


def test_a_whole_message_has_reasoning_before_text_before_calls() -> None:
    calls = tuple(ProviderToolCall(None, f"call_{name}", ProviderFunction(name, "{}")) for name in "fg")
    parts = segments_of(ProviderMessage(content="a", reasoning="hm", tool_calls=calls))
    assert [(part.index, part.kind, part.text, part.name) for part in parts] == [
        (0, "reasoning", "hm", ""),
        (1, "text", "a", ""),
        (2, "tool_call", "{}", "f"),
        (3, "tool_call", "{}", "g"),
    ]
