"""OpenAI's Responses, lowered to a chat completion (consumer API, section 7.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from api.consumer.chat_request import TOP_LOGPROBS_MAX, ChatRequest, model_in, parse_lowered
from api.consumer.members import Check, check_members, only, whole
from domain.errors import InvalidRequest

Json = dict[str, Any]

_LOWERED = frozenset(
    {
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "stream_options",
    }
)
LOGPROBS = "message.output_text.logprobs"
"""What ``include`` may name."""


def _include(name: str, value: Any) -> None:
    if not isinstance(value, list) or any(one != LOGPROBS for one in value):
        raise InvalidRequest(f"'{name}' may only name {LOGPROBS} here.", param=name)


_CHECKS: Mapping[str, Check] = {
    "previous_response_id": only((), "Responses are not stored, so going on from one is"),
    "conversation": only((), "Stored conversations are"),
    "background": only((False,), "Answering in the background is"),
    "background_options": only((), "Answering in the background is"),
    "prompt": only((), "Stored prompts are"),
    "include": _include,
    "top_logprobs": whole(0, TOP_LOGPROBS_MAX),
    "truncation": only(("disabled",), "Truncating the input is"),
    "max_tool_calls": only((), "A limit on tool calls is"),
    "context_management": only(([],), "Context management is"),
    "image": only((), "Image output is"),
    "access_programs": only(([],), "Access programs are"),
    "n": only((1,), "More than one answer is"),
    "logprobs": only((False,), "Log probabilities under this name are"),
}
_ROLES = ("assistant", "developer", "system", "user")
_TEXT_PARTS = ("input_text", "output_text", "text")
_INSTEAD = {"messages": "input", "response_format": "text", "reasoning_effort": "reasoning"}
"""Members of a chat body that stand for others of this dialect."""


class ResponsesRequest(msgspec.Struct, frozen=True):
    """``echoed`` are the members that the response object repeats."""

    chat: ChatRequest
    echoed: Json


def parse_responses(body: Json) -> ResponsesRequest:
    """Check a Responses body.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault.
    """
    model_in(body)
    messages = _messages(body.get("input"))
    check_members(body, _CHECKS)
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise InvalidRequest("'instructions' must be a text.", param="instructions")
    lowered = {name: value for name, value in body.items() if name not in _LOWERED | _CHECKS.keys()}
    lowered["messages"] = [*([{"role": "system", "content": instructions}] if instructions else []), *messages]
    lowered |= _tools(body) | _text(body.get("text")) | _reasoning(body.get("reasoning")) | _logprobs(body)
    return ResponsesRequest(parse_lowered(lowered, _INSTEAD), _echoed(body))


def _echoed(body: Json) -> Json:
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens") or None,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "temperature": 1.0 if body.get("temperature") is None else body["temperature"],
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0 if body.get("top_p") is None else body["top_p"],
        "metadata": body.get("metadata") or {},
        "text": {"format": {"type": "text"}} | (body.get("text") or {}),
        "truncation": "disabled",
        "store": False,
    }


# --- input -----------------------------------------------------------------------------------------------------------


def _messages(value: Any) -> list[Json]:
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'input' must be a text or a list with at least one item.", param="input")
    messages: list[Json] = []
    for index, item in enumerate(value):
        for message in _item(index, item):
            if messages and message.get("tool_calls") and messages[-1]["role"] == "assistant":
                # What the assistant said and called in one turn is one message, as models were taught.
                messages[-1] |= {"tool_calls": messages[-1].get("tool_calls", []) + message["tool_calls"]}
            else:
                messages.append(message)
    if not messages:
        raise InvalidRequest("'input' holds nothing to answer.", param="input")
    return messages


def _item(index: int, item: Any) -> list[Json]:
    kind = (item.get("type") or "message") if isinstance(item, dict) else None
    lower = _LOWER_ITEMS.get(kind) if isinstance(kind, str) else None
    if lower is None:
        raise InvalidRequest(f"input[{index}] is not an item that is supported here.", param="input")
    return lower(f"input[{index}]", item)


def _message(where: str, item: Json) -> list[Json]:
    role = item.get("role", "user")
    if role not in _ROLES:
        raise InvalidRequest(f"{where}.role must be one of {', '.join(_ROLES)}.", param="input")
    return [{"role": "system" if role == "developer" else role, "content": _content(where, item.get("content"))}]


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequest(f"{where}.content must be a text or a list of parts.", param="input")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise InvalidRequest(
                f"{where} has a part that this model cannot read; only text parts are supported.", param="input"
            )
    return "\n".join(texts)


def _function_call(where: str, item: Json) -> list[Json]:
    call_id, name, arguments = item.get("call_id") or item.get("id"), item.get("name"), item.get("arguments")
    if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, str)):
        raise InvalidRequest(f"{where}: a function_call needs 'call_id', 'name' and 'arguments'.", param="input")
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def _function_output(where: str, item: Json) -> list[Json]:
    if not isinstance(item.get("call_id"), str):
        raise InvalidRequest(f"{where}: a function_call_output needs 'call_id'.", param="input")
    return [{"role": "tool", "tool_call_id": item["call_id"], "content": _content(where, item.get("output"))}]


def _nothing(where: str, item: Json) -> list[Json]:
    """Earlier reasoning is dropped: models are not shown it again."""
    return []


_LOWER_ITEMS: Mapping[str, Callable[[str, Json], list[Json]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_output,
    "reasoning": _nothing,
}


# --- options ---------------------------------------------------------------------------------------------------------


def _tools(body: Json) -> Json:
    tools, choice = body.get("tools"), body.get("tool_choice")
    lowered: Json = {}
    if tools is not None:
        if not isinstance(tools, list):
            raise InvalidRequest("'tools' must be a list.", param="tools")
        lowered["tools"] = [_tool(tool) for tool in tools]
    if choice is not None:
        named = isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str)
        lowered["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}} if named else choice
    return lowered


def _tool(tool: Any) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidRequest("Only tools of the type function are supported.", param="tools")
    if not isinstance(tool.get("name"), str):
        raise InvalidRequest("Each of 'tools' needs a name.", param="tools")
    members = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in members if tool.get(name) is not None}}


def _text(text: Any) -> Json:
    if text is None:
        return {}
    if not isinstance(text, dict):
        raise InvalidRequest("'text' must be an object.", param="text")
    check_members({"text": text.get("verbosity")}, {"text": only(("medium",), "Choosing a verbosity is")})
    given = text.get("format")
    if isinstance(given, dict) and given.get("type") == "json_schema":
        schema = {name: value for name, value in given.items() if name != "type"}
        given = {"type": "json_schema", "json_schema": schema}
    return {} if given is None else {"response_format": given}


def _reasoning(reasoning: Any) -> Json:
    if reasoning is None:
        return {}
    if not isinstance(reasoning, dict):
        raise InvalidRequest("'reasoning' must be an object.", param="reasoning")
    return {} if reasoning.get("effort") is None else {"reasoning_effort": reasoning["effort"]}


def _logprobs(body: Json) -> Json:
    if not body.get("top_logprobs") and LOGPROBS not in (body.get("include") or ()):
        return {}
    return {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
