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

    def feed(self, text: str) -> tuple[str, bool]:
        """Take some text; returns what may be delivered, and whether a stop text was met."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """The text that was held back, now that the answer ended without a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
