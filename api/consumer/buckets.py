"""Token buckets: so much a second, and a burst on top. Plain arithmetic over a clock that is passed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

IDLE_SECONDS_MAX = 1_800.0


class Rate(NamedTuple):
    """``burst`` is what can be taken at once, ``per_second`` how fast it comes back."""

    per_second: float
    burst: float


class Level(NamedTuple):
    """A bucket after something was taken or refused; ``full_in_seconds`` says when it is full again."""

    rate: Rate
    remaining: float
    full_in_seconds: float


class _Bucket:
    def __init__(self, level: float, at: float) -> None:
        self.level = level
        self.at = at


class Buckets:
    """Buckets by name, made full at their first use and forgotten when they are idle, because by then they are full.

    ``idle_seconds_max`` is how long the slowest of them takes to fill.
    """

    def __init__(self, clock: Callable[[], float], idle_seconds_max: float = IDLE_SECONDS_MAX) -> None:
        self._clock = clock
        self._idle_seconds_max = idle_seconds_max
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def level(self, name: str, rate: Rate) -> Level:
        bucket = self._filled(name, rate)
        return Level(rate, max(0.0, bucket.level), (rate.burst - bucket.level) / rate.per_second)

    def wait_seconds(self, name: str, rate: Rate, amount: float) -> float:
        """How long until an amount can be taken; 0 when it can now. More than the burst needs a full bucket."""
        missing = min(amount, rate.burst) - self._filled(name, rate).level
        return max(0.0, missing / rate.per_second)

    def take(self, name: str, rate: Rate, amount: float) -> None:
        """Take an amount, below zero if need be; a negative amount is given back."""
        bucket = self._filled(name, rate)
        bucket.level = min(rate.burst, bucket.level - amount)

    def _filled(self, name: str, rate: Rate) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(rate.burst, now)
            self._forget_idle(now)
        self._buckets.move_to_end(name)
        bucket.level = min(rate.burst, bucket.level + (now - bucket.at) * rate.per_second)
        bucket.at = now
        return bucket

    def _forget_idle(self, now: float) -> None:
        for name, bucket in list(self._buckets.items())[:2]:
            if now - bucket.at > self._idle_seconds_max:
                del self._buckets[name]
