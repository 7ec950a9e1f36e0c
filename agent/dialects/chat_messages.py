"""Reads the messages of a chat completion's body."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from agent.engine.job import ChatMessage, Role, ToolCall
from agent.errors import JobRefused

_TOOL_CALLS_MAX = 128

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}

_Id = Annotated[str, msgspec.Meta(max_length=256)]


class Part(msgspec.Struct):
    """One part of a content that is a list."""

    type: str
    text: str | None = None


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    arguments: str


class _ToolCall(msgspec.Struct):
    id: _Id
    function: _Function


class Message(msgspec.Struct):
    """One message as it stands in the body."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: Annotated[list[_ToolCall], msgspec.Meta(max_length=_TOOL_CALLS_MAX)] | None = None
    tool_call_id: _Id | None = None
    function_call: Any = None


_arguments_decoder = msgspec.json.Decoder(dict[str, Any])


def read_messages(messages: list[Message]) -> tuple[ChatMessage, ...]:
    """The messages of a job.

    Raises:
        JobRefused: a message cannot be rendered. The text names its place.
    """
    return tuple(_message(f"messages[{number}]", message) for number, message in enumerate(messages))


def _message(place: str, message: Message) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        raise JobRefused(f"{place}.role: not a role that this machine knows")
    if message.function_call:
        raise JobRefused(f"{place}.function_call: not supported by this machine")
    if message.tool_calls and role != "assistant":
        raise JobRefused(f"{place}.tool_calls: only an assistant's message may have them")
    calls = tuple(_call(f"{place}.tool_calls[{index}]", call) for index, call in enumerate(message.tool_calls or ()))
    return ChatMessage(role, _content(place, role, message), calls, message.tool_call_id if role == "tool" else None)


def _content(place: str, role: Role, message: Message) -> str:
    if message.content is None and role == "assistant":
        return ""
    if message.content is None:
        raise JobRefused(f"{place}.content: missing")
    if isinstance(message.content, str):
        return message.content
    return "".join(_text(f"{place}.content[{index}]", part) for index, part in enumerate(message.content))


def _text(place: str, part: Part) -> str:
    if part.type != "text" or part.text is None:
        raise JobRefused(f"{place}: only parts of type text are supported by this machine")
    return part.text


def _call(place: str, call: _ToolCall) -> ToolCall:
    try:
        arguments = _arguments_decoder.decode(call.function.arguments or "{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise JobRefused(f"{place}.function.arguments: not the text of a JSON object") from None
    return ToolCall(call.id, call.function.name, arguments)
