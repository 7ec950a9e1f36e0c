"""How models write tool calls down, and how a model that was not trained on tools is told about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.engine.job import ChatMessage, Tool, ToolCall

Call = tuple[str, Mapping[str, Any]]
"""A tool's name and its arguments."""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """A call stands between ``start`` and ``end``; an empty ``end`` stands for the end of the answer.

    ``parse`` reads what stands between and raises anything on what is no call. ``is_json`` says that this is the form
    of ``JSON_FORM``, which can be read while it is written and enforced by a grammar.
    """

    start: str
    end: str
    parse: Callable[[str, tuple[Tool, ...]], list[Call]]
    is_json: bool = False


def parse_json_call(text: str, tools: tuple[Tool, ...]) -> list[Call]:
    """Read ``{"name": …, "arguments": {…}}``. Raises ValueError, KeyError or TypeError."""
    call = json.loads(text)
    return [(call["name"], call["arguments"])]


JSON_FORM = ToolForm("<tool_call>", "</tool_call>", parse_json_call, is_json=True)
"""The form of Hermes and Qwen, which is also taught to models that know none."""

_INSTRUCTIONS = (
    "You may call functions to help with the request. These are their signatures, one a line:\n<tools>\n{tools}\n"
    "</tools>\nTo call a function, write a JSON object with its name and its arguments between tags:\n"
    '{start}\n{{"name": "the name", "arguments": {{"an argument": "its value"}}}}\n{end}'
)


def as_wire(tool: Tool) -> dict[str, Any]:
    """The tool as OpenAI's members, which is what chat templates and parsers expect."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def taught(messages: Iterable[ChatMessage], tools: tuple[Tool, ...]) -> list[ChatMessage]:
    """The chat for a template that knows no tools: they are described by a system message, and calls and their results
    become text."""
    chat = [_as_text(message) for message in messages]
    if not tools:
        return chat
    lines = "\n".join(json.dumps(as_wire(tool), ensure_ascii=False) for tool in tools)
    instructions = _INSTRUCTIONS.format(tools=lines, start=JSON_FORM.start, end=JSON_FORM.end)
    if chat[0].role == "system":
        return [ChatMessage("system", f"{chat[0].content}\n\n{instructions}"), *chat[1:]]
    return [ChatMessage("system", instructions), *chat]


def _as_text(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage("user", f"<tool_response>\n{message.content}\n</tool_response>")
    calls = "\n".join(_call_text(call) for call in message.tool_calls)
    return ChatMessage(message.role, "\n".join(filter(None, (message.content, calls))))


def _call_text(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"{JSON_FORM.start}\n{body}\n{JSON_FORM.end}"
