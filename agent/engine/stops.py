"""Ends an answer at a stop text, wherever the borders between its pieces fall."""

from __future__ import annotations

from collections.abc import Iterable


class StopFilter:
    """Passes text on as soon as it can no longer be part of a stop text.

    The stop text that is complete first ends the answer; of two that end at one place the longer wins. Neither it nor
    anything after it is passed on.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take some text; returns what may be delivered, and the stop text that was met, if one was."""
        if not self._stops:
            return text, None
        text = self._held + text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            self._held = ""
            end, begin = min(found)
            return text[:begin], text[begin:end]
        keep = len(text) - max(overlap(text, stop) for stop in self._stops)
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """The text that was held back, now that no stop text can follow."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark`` without being all of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
