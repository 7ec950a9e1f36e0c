"""Reads one choice's text: what of it is thought, tool call and content, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agent.engine.job import CallHead, Channel, FinishReason, Toolbox
from agent.engine.stops import StopFilter
from agent.engine.thoughts import ThoughtSplitter
from agent.engine.tool_calls import CallPiece, ToolCallSplitter
from agent.engine.tool_forms import ToolForm


@dataclass(frozen=True, slots=True)
class Reading:
    """How a job's answers are to be read. ``opened_by`` is the tag of a thought that the prompt left open."""

    thought_tags: Mapping[str, str]
    opened_by: str | None
    stop: tuple[str, ...]
    toolbox: Toolbox | None
    tool_form: ToolForm


class Part(NamedTuple):
    """Some more of the answer on one channel."""

    channel: Channel
    text: str
    call: int = 0
    head: CallHead | None = None


class AnswerReader:
    """Takes the raw text of one choice, piece by piece."""

    def __init__(self, reading: Reading) -> None:
        self._thoughts = ThoughtSplitter(reading.thought_tags, opened_by=reading.opened_by)
        toolbox = reading.toolbox
        self._calls = ToolCallSplitter(reading.tool_form, toolbox.tools) if toolbox else None
        self._one_call = toolbox is not None and not toolbox.parallel
        self._called = False
        self._stops = StopFilter(reading.stop)
        self.stop_text: str | None = None
        self.ended = False

    @property
    def thinking(self) -> bool:
        return self._thoughts.thinking

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended, unless its limit cut it."""
        return "tool_calls" if self._called and self.stop_text is None else "stop"

    def feed(self, text: str) -> list[Part]:
        """What is certain after some more text. ``ended`` says afterwards whether this ended the answer."""
        return self._sorted(self._thoughts.feed(text))

    def flush(self) -> list[Part]:
        """What was held back, when the answer ends by itself or at its limit."""
        said = self._sorted(self._thoughts.flush())
        if self._calls is not None and not self.ended:
            said += self._with_calls(self._calls.flush())
        if not self.ended:
            said += self._content(self._stops.flush())
        return said

    def _sorted(self, thoughts: list[tuple[Channel, str]]) -> list[Part]:
        said: list[Part] = []
        for channel, text in thoughts:
            if channel == "reasoning":
                said.append(Part("reasoning", text))
            elif self._calls is not None:
                said += self._with_calls(self._calls.feed(text))
            else:
                said += self._stopped(text)
        return said

    def _with_calls(self, pieces: list[str | CallPiece]) -> list[Part]:
        said: list[Part] = []
        for piece in pieces:
            begins_anew = isinstance(piece, str) or piece.call > 0
            if self._called and self._one_call and begins_anew:
                self.ended = True
            if self.ended:
                break
            if isinstance(piece, str):
                said += self._stopped(piece)
                continue
            # A call ends the text before it, so nothing that was held back can become a stop text any more.
            said += self._content(self._stops.flush())
            said.append(Part("tool_call", piece.text, piece.call, piece.head))
            self._called = True
        if self._one_call and self._calls is not None and self._calls.completed:
            self.ended = True
        return said

    def _stopped(self, text: str) -> list[Part]:
        text, self.stop_text = self._stops.feed(text)
        self.ended = self.stop_text is not None
        return self._content(text)

    def _content(self, text: str) -> list[Part]:
        return [Part("content", text)] if text else []
