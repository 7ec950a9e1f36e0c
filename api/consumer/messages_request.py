"""Anthropic's Messages, lowered to a chat completion: machines need one form only (consumer API, section 9.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from api.consumer.chat_request import DEFAULT_OUTPUT_TOKENS, ChatRequest, model_in, parse_lowered
from api.consumer.json_schema import NoSchema, require_schema
from api.consumer.members import Check, check_members, only, stop_texts
from domain.errors import InvalidRequest

STOP_SEQUENCES_MAX = 16
EFFORTS = ("low", "medium", "high", "xhigh", "max")

Json = dict[str, Any]

_LOWERED = frozenset(
    {
        "messages",
        "system",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "output_format",
        "response_format",
        "reasoning_effort",
        "n",
        "logprobs",
        "top_logprobs",
    }
)
"""Members that become others, and members of a chat body that mean nothing in this dialect."""

_IGNORED = frozenset({"cache_control", "metadata", "service_tier", "user_profile_id", "workspace_id"})
_CHECKS: Mapping[str, Check] = {
    "container": only((), "Containers are"),
    "context_management": only((), "Context management is"),
    "diagnostics": only((), "Diagnostics are"),
    "fallbacks": only(([],), "Fallback models are"),
    "inference_geo": only((), "Choosing a place is"),
    "mcp_servers": only(([],), "MCP servers are"),
    "speed": only(("standard",), "Another speed is"),
}
_THINKING = ("adaptive", "disabled", "enabled")


class MessagesRequest(msgspec.Struct, frozen=True):
    """``with_thinking`` says whether the consumer wants to see the model's reasoning."""

    chat: ChatRequest
    with_thinking: bool
    stop_sequences: tuple[str, ...]


def parse_messages(body: Json) -> MessagesRequest:
    """Check a Messages body. A missing ``max_tokens`` means 8,192.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault.
    """
    model_in(body)
    messages = _lowered_messages(body.get("messages"))
    check_members(body, _CHECKS)
    stops = stop_texts("stop_sequences", body.get("stop_sequences"), STOP_SEQUENCES_MAX)
    with_thinking = _with_thinking(body.get("thinking"))
    if body.get("max_tokens") == 0:
        raise InvalidRequest("'max_tokens' must be at least 1.", param="max_tokens")
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and temperature > 1:
        raise InvalidRequest("'temperature' must be a number from 0 to 1.", param="temperature")
    lowered = {name: value for name, value in body.items() if name not in _LOWERED | _IGNORED}
    lowered["messages"] = [*_system(body.get("system")), *messages]
    lowered["max_tokens"] = DEFAULT_OUTPUT_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
    if stops:
        lowered["stop"] = stops
    lowered |= _tools(body) | _output(body, with_thinking=with_thinking)
    instead = {"response_format": "output_config" if body.get("output_config") else "output_format"}
    return MessagesRequest(parse_lowered(lowered, instead, stops_max=STOP_SEQUENCES_MAX), with_thinking, tuple(stops))


# --- messages --------------------------------------------------------------------------------------------------------


def _system(system: Any) -> list[Json]:
    if system in (None, "", []):
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    if not isinstance(system, list) or not all(_is_text(block) for block in system):
        raise InvalidRequest("'system' must be a text or a list of text blocks.", param="system")
    return [{"role": "system", "content": [_text_part(block) for block in system]}]


def _lowered_messages(messages: Any) -> list[Json]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list with at least one message.", param="messages")
    lowered: list[Json] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise InvalidRequest(
                f"messages[{index}] must be an object whose role is user or assistant; instructions go into 'system'.",
                param="messages",
            )
        content = message.get("content")
        if isinstance(content, str):
            lowered.append({"role": message["role"], "content": content})
        elif isinstance(content, list) and content:
            lowered += _LOWER_BLOCKS[message["role"]](f"messages[{index}]", content)
        else:
            raise InvalidRequest(f"messages[{index}].content must be a text or a list of blocks.", param="messages")
    if messages[-1]["role"] == "assistant":
        raise InvalidRequest(
            "The last message must be the user's; going on with a begun answer is not supported here.",
            param="messages",
        )
    return lowered


def _user_blocks(where: str, blocks: list[Any]) -> list[Json]:
    """Results of tools become messages of their own, in front of what the user says beside them."""
    results: list[Json] = []
    parts: list[Json] = []
    for block in blocks:
        if _is_text(block):
            parts.append(_text_part(block))
        elif _type_of(block) == "tool_result":
            results.append(_tool_result(where, block))
        else:
            raise _unreadable(where, block)
    return [*results, *([{"role": "user", "content": parts}] if parts else [])]


def _assistant_blocks(where: str, blocks: list[Any]) -> list[Json]:
    """Earlier reasoning is dropped: models are not shown it again."""
    parts: list[Json] = []
    calls: list[Json] = []
    for block in blocks:
        if _is_text(block):
            parts.append(_text_part(block))
        elif _type_of(block) == "tool_use":
            calls.append(_tool_use(where, block))
        elif _type_of(block) not in ("thinking", "redacted_thinking"):
            raise _unreadable(where, block)
    message: Json = {"role": "assistant", "content": parts or None}
    return [message | ({"tool_calls": calls} if calls else {})]


_LOWER_BLOCKS: Mapping[str, Callable[[str, list[Any]], list[Json]]] = {
    "user": _user_blocks,
    "assistant": _assistant_blocks,
}


def _tool_use(where: str, block: Json) -> Json:
    call_id, name, arguments = block.get("id"), block.get("name"), block.get("input")
    if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, dict)):
        raise InvalidRequest(f"{where}: a tool_use block needs 'id', 'name' and 'input'.", param="messages")
    arguments_text = msgspec.json.encode(arguments).decode()
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments_text}}


def _tool_result(where: str, block: Json) -> Json:
    call_id, content = block.get("tool_use_id"), block.get("content", "")
    if not isinstance(call_id, str):
        raise InvalidRequest(f"{where}: a tool_result block needs 'tool_use_id'.", param="messages")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InvalidRequest(f"{where}: a tool_result block holds a text or text blocks.", param="messages")
    failed = "Error: " if block.get("is_error") is True else ""
    return {"role": "tool", "tool_call_id": call_id, "content": failed + content}


def _type_of(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else None


def _is_text(block: Any) -> bool:
    return _type_of(block) == "text" and isinstance(block.get("text"), str)


def _text_part(block: Json) -> Json:
    """The text alone, without what only Anthropic's cache reads."""
    return {"type": "text", "text": block["text"]}


def _unreadable(where: str, block: Any) -> InvalidRequest:
    if _type_of(block) in ("image", "document"):
        return InvalidRequest(f"{where}: this model cannot read images or documents.", param="messages")
    return InvalidRequest(f"{where} has a content block that is not valid or not supported here.", param="messages")


# --- options ---------------------------------------------------------------------------------------------------------


def _with_thinking(value: Any) -> bool:
    if value is None:
        return False
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in _THINKING:
        raise InvalidRequest(f"'thinking.type' must be one of {', '.join(_THINKING)}.", param="thinking")
    return bool(kind != "disabled")


def _output(body: Json, *, with_thinking: bool) -> Json:
    """How hard the model thinks and what form its text has. Who asks for neither thoughts nor effort gets none."""
    config = body.get("output_config") or {}
    if not isinstance(config, dict):
        raise InvalidRequest("'output_config' must be an object.", param="output_config")
    effort = config.get("effort")
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequest(f"'output_config.effort' must be one of {', '.join(EFFORTS)}.", param="output_config")
    lowered: Json = {"reasoning_effort": "medium" if with_thinking else "none"}
    if effort is not None:
        lowered["reasoning_effort"] = "xhigh" if effort == "max" else effort
    for name, given in (("output_config", config.get("format")), ("output_format", body.get("output_format"))):
        if given is not None:
            lowered["response_format"] = _response_format(name, given)
    return lowered


def _response_format(name: str, given: Any) -> Json:
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        raise InvalidRequest(f"The format in '{name}' must be a json_schema.", param=name)
    try:
        require_schema(given.get("schema"))
    except NoSchema as fault:
        raise InvalidRequest(f"'{name}' holds no JSON schema: {fault}.", param=name) from None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given["schema"], "strict": True}}


def _tools(body: Json) -> Json:
    tools, choice = body.get("tools"), body.get("tool_choice")
    lowered: Json = {}
    if tools is not None:
        if not isinstance(tools, list):
            raise InvalidRequest("'tools' must be a list.", param="tools")
        lowered["tools"] = [_tool(tool) for tool in tools]
    if choice is not None:
        lowered["tool_choice"] = _tool_choice(choice)
        if choice.get("disable_parallel_tool_use") is True:
            lowered["parallel_tool_calls"] = False
    return lowered


def _tool(tool: Any) -> Json:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise InvalidRequest("Each of 'tools' needs a name.", param="tools")
    if tool.get("type") not in (None, "custom"):
        raise InvalidRequest("Only tools that the client itself runs are supported.", param="tools")
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else None
    plain = {"auto": "auto", "any": "required", "none": "none"}
    if kind == "tool" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    if kind not in plain:
        raise InvalidRequest("'tool_choice.type' must be auto, any, none or tool with a name.", param="tool_choice")
    return plain[kind]
