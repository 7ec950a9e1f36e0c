"""The form of an answer: what was asked for, and whether a machine keeps to it (provider protocol, section 4).

What a machine may charge for follows from what it delivered in this form.
"""

from __future__ import annotations

from typing import NamedTuple

from api.consumer.answers import ProviderChunk, ProviderMessage, Whole

CHOICE_SLACK_TOKENS = 16
"""Tokens of a choice that may be generated without a byte reaching the consumer, such as the end of its text."""

REASONING_SLACK_TOKENS = 32
"""The same for the tags around a choice's reasoning, which are not delivered."""

CALL_SLACK_TOKENS = 32
"""The same for the words around a tool call, in the model's own form."""

CALLS_WITH_SLACK_MAX = 32
"""Calls of a choice that get this slack. An honest answer with more of them is long enough without it."""


class Expected(NamedTuple):
    """``choices`` is how many, ``tools`` are the names that may be called, ``stop_bytes`` is the longest stop sequence:
    it is generated and not delivered."""

    stream: bool
    choices: int = 1
    stop_bytes: int = 0
    tools: frozenset[str] = frozenset()
    logprobs: bool = False


class Misshapen(ValueError):
    """The machine's answer is not of the form that was asked for."""


class Delivered:
    """What an attempt delivered so far. ``content_bytes`` is text, reasoning and tool calls of all choices."""

    def __init__(self, expected: Expected) -> None:
        self.content_bytes = 0
        self._expected = expected
        self._latest_call = [-1] * expected.choices
        self._calls = [0] * expected.choices
        self._reasoned = [False] * expected.choices

    def add(self, answer: ProviderChunk | Whole) -> None:
        """Raises Misshapen: a choice that was not asked for, too few of them, or a tool call that goes on after the
        next one has begun. Dialects that frame each call cannot go back to one that is closed."""
        if isinstance(answer, Whole):
            if sorted(choice.index for choice in answer.choices) != list(range(self._expected.choices)):
                raise Misshapen("not the choices that were asked for")
            for choice in answer.choices:
                self._add(choice.index, choice.message)
            return
        for delta in answer.choices:
            if not 0 <= delta.index < self._expected.choices:
                raise Misshapen("a choice that was not asked for")
            self._add(delta.index, delta.delta)

    def completion_bound(self) -> int:
        """The most completion tokens that all of this can be: a token is at least one byte, but for the slack."""
        slack_of_each = CHOICE_SLACK_TOKENS + self._expected.stop_bytes
        calls = sum(min(calls, CALLS_WITH_SLACK_MAX) for calls in self._calls)
        return (
            self.content_bytes
            + slack_of_each * self._expected.choices
            + REASONING_SLACK_TOKENS * sum(self._reasoned)
            + CALL_SLACK_TOKENS * calls
        )

    def _add(self, choice: int, message: ProviderMessage) -> None:
        for position, call in enumerate(message.tool_calls or ()):
            number = position if call.index is None else call.index
            if number < self._latest_call[choice]:
                raise Misshapen("a tool call went on after the next one had begun")
            # A call counts once, and only a call that the consumer made possible: its slack is no gift for every piece.
            is_offered = call.function.name in self._expected.tools
            self._calls[choice] += number > self._latest_call[choice] and is_offered
            self._latest_call[choice] = number
        self._reasoned[choice] |= bool(message.thinking)
        self.content_bytes += message.content_bytes
