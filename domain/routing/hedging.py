"""When a request is sent to a second machine because its first content is late, and how often that may happen.

A gateway keeps one of these for all of its requests. Source: provider protocol, section 13.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from math import ceil

SAMPLES_MIN = 20
"""What is late is not known before so many first contents."""

SAMPLES_MAX = 200
KINDS_MAX = 256
BURST_MAX = 5
"""Hedges that quiet times save up for later."""

Kind = tuple[str, bool]
"""A model, and whether its answer is streamed: the first content of an answer in one piece is all of it."""


class FirstContentTimes:
    """The latest times from dispatch to first content of each kind, in seconds. Of too many kinds the one that was not
    seen for longest is forgotten."""

    def __init__(self) -> None:
        self._latest: OrderedDict[Kind, tuple[deque[float], list[float]]] = OrderedDict()

    def note(self, kind: Kind, seconds: float) -> None:
        latest, ordered = self._latest.setdefault(kind, (deque(), []))
        self._latest.move_to_end(kind)
        latest.append(seconds)
        insort(ordered, seconds)
        if len(latest) > SAMPLES_MAX:
            del ordered[bisect_left(ordered, latest.popleft())]
        if len(self._latest) > KINDS_MAX:
            self._latest.popitem(last=False)

    def quantile(self, kind: Kind, share: float) -> float | None:
        """The time that this share of the latest did not exceed; None while there are too few."""
        _, ordered = self._latest.get(kind, ((), ()))
        if len(ordered) < SAMPLES_MIN:
            return None
        return ordered[max(0, ceil(share * len(ordered)) - 1)]


class HedgeBudget:
    """Hedges are at most ``percent`` of the requests, at every moment."""

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._saved = 0  # in hundredths of a hedge, so that nothing is rounded

    def count_request(self) -> None:
        self._saved = min(self._saved + self._percent, 100 * BURST_MAX)

    def take(self) -> bool:
        if self._saved < 100:
            return False
        self._saved -= 100
        return True

    def give_back(self) -> None:
        """A hedge that was taken did not happen."""
        self._saved = min(self._saved + 100, 100 * BURST_MAX)


class Hedging:
    """``percent_max`` of 0 turns it off; ``quantile`` is the share of first contents that are not late."""

    def __init__(self, percent_max: int, quantile: float) -> None:
        self.requests = 0
        self.hedges = 0
        self.wins = 0
        self._on = percent_max > 0
        self._quantile = quantile
        self._times = FirstContentTimes()
        self._budget = HedgeBudget(percent_max)

    def count_request(self) -> None:
        self.requests += 1
        self._budget.count_request()

    def note_first_content(self, kind: Kind, seconds: float) -> None:
        """A first content came after so long, or had not come yet when a race was lost."""
        self._times.note(kind, seconds)

    def late_after_seconds(self, kind: Kind) -> float | None:
        """After how long a first content is late; None while nobody knows."""
        return self._times.quantile(kind, self._quantile) if self._on else None

    def begin(self) -> bool:
        """Whether a second machine may be asked now."""
        if not self._budget.take():
            return False
        self.hedges += 1
        return True

    def undo(self) -> None:
        """No second machine was free."""
        self.hedges -= 1
        self._budget.give_back()

    def won(self) -> None:
        """The second machine was the first to answer."""
        self.wins += 1
