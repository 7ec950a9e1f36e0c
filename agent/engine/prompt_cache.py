"""Remembers conversations between their turns, apart for each salt."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

ENTRIES_MAX = 64
IDLE_SECONDS_MAX = 600.0
"""What was not used for that long is forgotten: it is somebody's conversation."""

PRESSURE_MAX = 0.9
"""With a larger share of the machine's memory in use everything is forgotten."""

SWEEP_SECONDS = 5.0

# A match shorter than this saves less than it costs to look after.
_PREFIX_TOKENS_MIN = 4

S = TypeVar("S", bound="State")


class State(Protocol):
    """What a model remembers of some tokens."""

    tokens: list[int]
    size_bytes: int

    def cut(self: S, length: int) -> S | None:
        """The state after the first ``length`` tokens, or None when it cannot go back to it."""
        ...


@dataclass(slots=True)
class _Entry(Generic[S]):
    salt: str
    state: S
    used_at: float


class PromptCache(Generic[S]):
    """The states of one model, the least recently used first to go. Times are those of any clock, in seconds.

    A state is found only under the salt that it was kept under. The salt stands for an account, so nobody can learn
    from the speed of an answer what others have asked.
    """

    def __init__(self, size_bytes_max: int) -> None:
        self._size_bytes_max = size_bytes_max
        self._entries: OrderedDict[int, _Entry[S]] = OrderedDict()
        self._next = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, salt: str, prompt: list[int], now: float) -> S | None:
        """The state after the longest remembered part that begins ``prompt`` and is not all of it."""
        candidates = [
            (min(_common(entry.state.tokens, prompt), len(prompt) - 1), number)
            for number, entry in self._entries.items()
            if entry.salt == salt
        ]
        for length, number in sorted(candidates, reverse=True):
            if length < _PREFIX_TOKENS_MIN:
                break
            entry = self._entries[number]
            state = entry.state.cut(length)
            if state is not None:
                entry.used_at = now
                self._entries.move_to_end(number)
                return state
        return None

    def keep(self, salt: str, state: S, now: float) -> None:
        """Remember a state. Those of the same salt whose tokens begin its tokens are forgotten for it."""
        if state.size_bytes > self._size_bytes_max:
            return
        for number, entry in list(self._entries.items()):
            if entry.salt == salt and _common(entry.state.tokens, state.tokens) == len(entry.state.tokens):
                self._forget(number)
        self._entries[self._next] = _Entry(salt, state, now)
        self._next += 1
        self.size_bytes += state.size_bytes
        while len(self._entries) > ENTRIES_MAX or self.size_bytes > self._size_bytes_max:
            self._forget(next(iter(self._entries)))

    def sweep(self, now: float, memory_pressure: float) -> None:
        """Forget what is idle for long, and everything when the machine's memory is scarce."""
        for number, entry in list(self._entries.items()):
            if memory_pressure > PRESSURE_MAX or entry.used_at <= now - IDLE_SECONDS_MAX:
                self._forget(number)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size_bytes = 0

    def _forget(self, number: int) -> None:
        self.size_bytes -= self._entries.pop(number).state.size_bytes


def _common(one: list[int], other: list[int]) -> int:
    """Length of the longest common beginning."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    low, high = 0, shorter
    while low + 1 < high:
        middle = (low + high) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle
    return low
