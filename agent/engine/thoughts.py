"""Tells a model's thoughts from its answer (consumer API, sections 6.4 and 6.5)."""

from __future__ import annotations

from collections.abc import Mapping

from agent.engine.job import Channel
from agent.engine.stops import overlap

THOUGHT_TAGS: Mapping[str, str] = {"<think>": "</think>", "<|channel>thought": "<channel|>"}
"""The tags around thoughts that are known whatever the model: the one that opens to the one that closes."""


class ThoughtSplitter:
    """Splits one answer, however its tags are cut across pieces.

    Thoughts come before the answer: once anything else than white space was said, a tag is text like any other. White
    space around a thought is dropped.
    """

    def __init__(self, tags: Mapping[str, str], *, opened_by: str | None = None) -> None:
        """``opened_by`` is the opening tag with which the prompt ended, when the template opens the thought itself."""
        self._tags = tags
        self._held = ""
        self._closing = tags[opened_by] if opened_by is not None else ""
        self._at_border = opened_by is not None
        self._in_text = False

    @property
    def thinking(self) -> bool:
        """Whether the next text belongs to a thought, as far as one can tell."""
        return bool(self._closing)

    def feed(self, text: str) -> list[tuple[Channel, str]]:
        """What is certain after some more of the answer; no text in it is empty."""
        said: list[tuple[Channel, str]] = []
        self._held += text
        while not self._in_text and (self._closing or self._held):
            if self._closing:
                if not self._take_thought(said):
                    return said
            elif not self._take_border():
                return said
        if self._held:
            said.append(("content", self._held))
            self._held = ""
        return said

    def flush(self) -> list[tuple[Channel, str]]:
        """What was held back, at the end of the answer: what looked like a tag is none."""
        held, self._held = self._trimmed(self._held), ""
        if self._closing:
            held = held.rstrip()
            return [("reasoning", held)] if held else []
        return [("content", held)] if held else []

    def _take_thought(self, said: list[tuple[Channel, str]]) -> bool:
        """Deliver what is certain of an open thought; False when more text is needed to go on."""
        thought, closed, rest = self._held.partition(self._closing)
        if closed:
            thought = self._trimmed(thought).rstrip()
            self._held, self._closing, self._at_border = rest, "", True
        else:
            # White space may stand before the closing tag, so it waits for what follows.
            certain = len(thought) - overlap(thought, self._closing)
            certain = len(thought[:certain].rstrip())
            self._held = thought[certain:]
            thought = self._trimmed(thought[:certain])
        if thought:
            said.append(("reasoning", thought))
        return bool(closed)

    def _take_border(self) -> bool:
        """Look whether a thought or the text begins; False when more text is needed to tell."""
        begun = self._held.lstrip()
        for opening, closing in self._tags.items():
            if begun.startswith(opening):
                self._held, self._closing, self._at_border = begun[len(opening) :], closing, True
                return True
        if not begun or any(opening.startswith(begun) for opening in self._tags):
            return False
        self._held, self._in_text = self._trimmed(self._held), True
        return True

    def _trimmed(self, text: str) -> str:
        if self._at_border:
            text = text.lstrip()
            self._at_border = not text
        return text
