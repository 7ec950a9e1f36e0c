"""Renders chats with a model's own template. transformers is untyped: ``Any`` stays inside this module.

Nothing here makes MLX calls.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.engine.job import ChatJob, ChatMessage, Tool
from agent.engine.thoughts import THOUGHT_TAGS
from agent.engine.tool_forms import JSON_FORM, ToolForm, as_wire, taught
from agent.errors import JobRefused
from agent.log import describe

_log = logging.getLogger(__name__)

# Enough to hold a tag that opens a thought at the end of a prompt.
_PROMPT_END_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered chat. ``opened_by`` is the tag of a thought that the template opened at its end."""

    tokens: list[int]
    opened_by: str | None
    tool_form: ToolForm


class Prompter:
    """Belongs to one thread, which need not be MLX's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._arguments: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True}
        renderer = tokenizer._tokenizer.apply_chat_template
        self._is_jinja = getattr(tokenizer, "_chat_template", None) is None
        parameters = inspect.signature(renderer).parameters
        self._reserved = {*parameters, "messages", *tokenizer.special_tokens_map}
        self._control_tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        if self._is_jinja and "sanitize_control_tokens" in parameters:
            self._arguments["sanitize_control_tokens"] = True
        else:
            _log.warning("control tokens that are spelled out in messages act as control tokens with this model")
        self.thought_tags: Mapping[str, str] = THOUGHT_TAGS
        if tokenizer.has_thinking:
            self.thought_tags = {**THOUGHT_TAGS, tokenizer.think_start: tokenizer.think_end}
        self._own_form = _own_form(tokenizer)

    def render(self, job: ChatJob) -> Prompt:
        """The prompt's tokens.

        A control token that a message spells out, such as ``<|end|>``, becomes the tokens of that plain text.

        Raises:
            JobRefused: the template does not take these messages, or a template argument is one of its own.
        """
        if taken := sorted(self._reserved & job.template_arguments.keys()):
            raise JobRefused(f"chat_template_kwargs.{taken[0]}: not an argument that may be given")
        self._refuse_control_tokens_in_names(job)
        form = self._form(job)
        tools = job.toolbox.tools if job.toolbox else ()
        arguments = self._arguments | self._thinking(job.thinking) | dict(job.template_arguments)
        if form is self._own_form:
            chat = _native(job.messages)
            if tools:
                arguments["tools"] = [as_wire(tool) for tool in tools]
        else:
            chat = [{"role": message.role, "content": message.content} for message in taught(job.messages, tools)]
        try:
            tokens = self._tokenizer.apply_chat_template(chat, **arguments)
        except Exception as error:  # noqa: BLE001 - templates refuse with errors of every class
            # Their messages quote what they refuse.
            _log.info("a chat template refused a request: %s", describe(error))
            raise JobRefused("messages: the model's chat template does not accept them") from None
        if not tokens:
            raise JobRefused("messages: the prompt is empty")
        return Prompt(list(tokens), self._opened_by(tokens), form)

    def _form(self, job: ChatJob) -> ToolForm:
        """The model's own form, unless it has none or a call must be enforced, which takes the form of the grammar."""
        own = self._own_form
        if own is None or (job.toolbox is not None and job.toolbox.required and not own.is_json):
            return JSON_FORM
        return own

    def _thinking(self, thinking: bool | None) -> dict[str, Any]:
        if thinking is None:
            return {}
        # Templates know one of two names and ignore the other; mlx-lm translates for renderers that are no templates.
        names = ("enable_thinking", "thinking") if self._is_jinja else ("enable_thinking",)
        return dict.fromkeys(names, thinking)

    def _opened_by(self, tokens: list[int]) -> str | None:
        end = self._tokenizer.decode(tokens[-_PROMPT_END_TOKENS:]).rstrip()
        return next((opening for opening in self.thought_tags if end.endswith(opening)), None)

    def _refuse_control_tokens_in_names(self, job: ChatJob) -> None:
        # Templates print the names of members, in which control tokens are not made harmless.
        given = [tool.parameters for tool in (job.toolbox.tools if job.toolbox else ())]
        given += [call.arguments for message in job.messages for call in message.tool_calls]
        for name in _names(given):
            if any(token in name for token in self._control_tokens):
                raise JobRefused("tools: the name of a member spells a control token of the model")


def _own_form(tokenizer: Any) -> ToolForm | None:
    if not tokenizer.has_tool_calling:
        return None
    parser = tokenizer.tool_parser
    if parser.__module__.endswith(".json_tools"):
        return JSON_FORM

    def parse(text: str, tools: tuple[Tool, ...]) -> list[tuple[str, Mapping[str, Any]]]:
        parsed = parser(text, [as_wire(tool) for tool in tools])
        return [(call["name"], call["arguments"]) for call in (parsed if isinstance(parsed, list) else [parsed])]

    return ToolForm(tokenizer.tool_call_start, tokenizer.tool_call_end, parse)


def _native(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        rendered: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            rendered["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            rendered["tool_call_id"] = message.tool_call_id
            rendered["name"] = names.get(message.tool_call_id)
        chat.append(rendered)
    return chat


def _names(value: Any) -> Iterable[str]:
    """The names of all members of JSON values, at every depth."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, Mapping):
            yield from current
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)
