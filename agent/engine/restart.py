"""When a failed engine is loaded again (provider agent, section 13.3)."""

from __future__ import annotations

from collections import deque

FIRST_DELAY_SECONDS = 1.0
DELAY_SECONDS_MAX = 60.0
FAILURES_MAX = 5
WINDOW_SECONDS = 600.0


class RestartPolicy:
    """Delays of 1, 2, 4 … 60 s between a failure and the reload; no more reloads after 5 failures in 10 minutes."""

    def __init__(self) -> None:
        self._failures: deque[float] = deque()

    def delay_after_failure(self, now: float) -> float | None:
        """Seconds until the reload, or None when the engine stays down. ``now`` is any clock in seconds."""
        while self._failures and self._failures[0] <= now - WINDOW_SECONDS:
            self._failures.popleft()
        self._failures.append(now)
        if len(self._failures) > FAILURES_MAX:
            return None
        return min(DELAY_SECONDS_MAX, FIRST_DELAY_SECONDS * 2.0 ** (len(self._failures) - 1))
