"""Reads the tools of a chat completion's body, and which of them must be called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from agent.engine.job import Tool, Toolbox
from agent.errors import JobRefused

TOOLS_MAX = 128

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OfferedTool(msgspec.Struct):
    """One tool as it stands in the body. Its member ``strict`` is not read: calls are enforced where one is required,
    and otherwise left to the model."""

    type: Literal["function"]
    function: _Function


class _Named(msgspec.Struct):
    name: str


class NamedChoice(msgspec.Struct):
    """A choice of one tool."""

    type: Literal["function"]
    function: _Named


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def read_toolbox(tools: list[OfferedTool] | None, choice: ToolChoice | None, parallel: bool | None) -> Toolbox | None:
    """The tools that the model may call; None when it may call none.

    Raises:
        JobRefused: two tools share a name, or the choice names none of them. The text names the member.
    """
    offered = tuple(_tool(tool.function) for tool in tools or ())
    names = tuple(tool.name for tool in offered)
    if len(set(names)) != len(names):
        raise JobRefused("tools: two of them have the same name")
    required: tuple[str, ...] = ()
    if isinstance(choice, NamedChoice):
        if choice.function.name not in names:
            raise JobRefused("tool_choice: names none of the tools")
        required = (choice.function.name,)
    elif choice == "required":
        if not names:
            raise JobRefused("tool_choice: requires a call, but there are no tools")
        required = names
    if not offered or choice == "none":
        return None
    return Toolbox(offered, required, parallel is not False)


def _tool(function: _Function) -> Tool:
    parameters = _NO_PARAMETERS if function.parameters is None else function.parameters
    return Tool(function.name, function.description or "", parameters)
