"""Tools in a chat body: what the model may call, what it must call, and the calls of earlier turns (consumer API,
section 6.3)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from api.consumer.json_schema import NoSchema, require_schema
from domain.errors import InvalidRequest

TOOLS_MAX = 128
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
CALL_ID_CHARACTERS_MAX = 256


def check_tools(name: str, tools: Any) -> None:
    if not isinstance(tools, list) or len(tools) > TOOLS_MAX:
        raise InvalidRequest(f"'{name}' must be a list of at most {TOOLS_MAX} tools.", param=name)
    for index, tool in enumerate(tools):
        _check_tool(name, f"{name}[{index}]", tool)
    if len(tool_names(tools)) < len(tools):
        raise InvalidRequest(f"Each of '{name}' needs a name of its own.", param=name)


def tool_names(tools: Any) -> frozenset[str]:
    """The names of tools that were checked."""
    return frozenset(tool["function"]["name"] for tool in tools or ())


def _check_tool(param: str, where: str, tool: Any) -> None:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise InvalidRequest(f"{where}: only tools of the type function are supported.", param=param)
    if not _is_name(function.get("name")):
        raise InvalidRequest(f"{where} needs a name of 1 to 64 letters, digits, '_' and '-'.", param=param)
    for member, kind in (("description", str), ("strict", bool)):
        if function.get(member) is not None and not isinstance(function[member], kind):
            raise InvalidRequest(f"{where}.function.{member} has a value that it cannot have.", param=param)
    if function.get("parameters") is not None:
        try:
            require_schema(function["parameters"])
        except NoSchema as fault:
            raise InvalidRequest(f"{where}.function.parameters is no JSON schema: {fault}.", param=param) from None


def check_tool_choice(choice: Any, tools: Any) -> None:
    """``tools`` were checked before. Only ``none`` and ``auto`` make sense without any."""
    if choice is None or choice in ("none", "auto"):
        return
    named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if choice != "required" and not isinstance(named, dict):
        raise InvalidRequest("'tool_choice' must be none, auto, required or a function.", param="tool_choice")
    if not tools:
        raise InvalidRequest("'tool_choice' demands a call, but there are no 'tools'.", param="tool_choice")
    if isinstance(named, dict) and named.get("name") not in tool_names(tools):
        raise InvalidRequest("'tool_choice' names a function that is not in 'tools'.", param="tool_choice")


def check_calls(where: str, message: dict[str, Any]) -> None:
    """The calls in an earlier message of the assistant, or what one came to in a message of a tool."""
    if message.get("function_call"):
        raise InvalidRequest(f"{where}.function_call is not supported here; use 'tool_calls'.", param="messages")
    calls = message.get("tool_calls")
    if message["role"] == "tool" and not _is_call_id(message.get("tool_call_id")):
        raise InvalidRequest(f"{where} needs the 'tool_call_id' of the call that it answers.", param="messages")
    if calls is None:
        return
    if message["role"] != "assistant" or not isinstance(calls, list) or len(calls) > TOOLS_MAX:
        raise InvalidRequest(f"{where}.tool_calls must be a list of the assistant's calls.", param="messages")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if (
            not isinstance(function, dict)
            or call.get("type", "function") != "function"
            or not _is_call_id(call.get("id"))
            or not _is_name(function.get("name"))
            or not _is_text_of_an_object(function.get("arguments"))
        ):
            raise InvalidRequest(
                f"{where}.tool_calls[{index}] needs an 'id' and a function with a 'name' and with 'arguments' that are "
                "the text of a JSON object.",
                param="messages",
            )


def _is_text_of_an_object(value: Any) -> bool:
    """Templates print arguments member by member. An empty text stands for no arguments."""
    if not isinstance(value, str):
        return False
    try:
        return isinstance(msgspec.json.decode(value or "{}"), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _is_call_id(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= CALL_ID_CHARACTERS_MAX
