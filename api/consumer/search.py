"""The search for one attempt's machine: what the scheduler is asked, and what its answers mean for the consumer."""

from __future__ import annotations

import time

from domain.dispatch import Refused, Waiting
from domain.errors import DarkbloomError, InvalidRequest, ModelNotAvailable, ServiceUnavailable
from domain.routing import retry_after_seconds


class Search:
    """``until`` is when it is given up, in the time of the event loop; ``hedge`` says that it may come to nothing."""

    def __init__(self, number: int, *, hedge: bool, until: float) -> None:
        self.number = number
        self.hedge = hedge
        self.until = until
        self._began = time.perf_counter()
        self._waiting: Waiting | None = None

    @property
    def took_us(self) -> int:
        return int((time.perf_counter() - self._began) * 1_000_000)

    def wait(self, waiting: Waiting, *, until: float) -> None:
        """There is no free slot; only the first such word counts, so that nobody waits for ever."""
        if self._waiting is None:
            self._waiting = waiting
            self.until = until

    def nobody_came(self) -> DarkbloomError:
        if self._waiting is None:
            return ServiceUnavailable("The scheduler did not answer; nothing was charged, try again.")
        if self._waiting.machines == 0:
            return ModelNotAvailable(
                "No machine that serves this model is connected; nothing was charged. GET /v1/models lists what is "
                "served."
            )
        return _come_back("No machine became free for this model in time; nothing was charged.", self._waiting)


def refusal_of(refused: Refused) -> DarkbloomError:
    if refused.reason == "queue_full":
        return _come_back("Too many requests are waiting for this model; nothing was charged.", refused)
    if refused.reason == "hopeless":
        return _come_back("The queue for this model is longer than a request may wait; nothing was charged.", refused)
    if refused.reason == "too_large":
        return InvalidRequest(
            "No machine that serves this model now has the memory for an answer as long as this request allows; ask "
            "for fewer tokens or fewer choices.",
            param="max_tokens",
        )
    return ModelNotAvailable()


def not_queued() -> DarkbloomError:
    return ServiceUnavailable("The scheduler takes no requests just now; nothing was charged, try again.")


def _come_back(what: str, place: Waiting | Refused) -> ModelNotAvailable:
    """A refusal that says where in the queue the request is and when to ask again."""
    wait = "" if place.wait_seconds is None else f", some {max(1.0, place.wait_seconds):.0f} seconds from its turn"
    seconds = retry_after_seconds(place.position, place.wait_seconds)
    error = ModelNotAvailable(
        f"{what} It was number {place.position} in the queue{wait}; try again in {seconds} seconds."
    )
    error.retry_after_seconds = seconds
    return error
