"""The one thread that makes MLX calls.

MLX keeps streams and random state by thread, and two threads that drive one GPU only slow each other down. All engines
of the process share this thread and take turns by single decode steps (provider agent, section 8.1).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from agent.engine import mlx
from agent.log import describe

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Stepper(Protocol):
    """Something that the thread drives."""

    def step(self) -> bool:
        """Do one short piece of work; False when there is nothing to do now."""
        ...

    def wake_at(self) -> float | None:
        """When to step again although nobody called ``wake``, on the monotonic clock."""
        ...


class MlxThread:
    """Runs single calls first, then one step of each stepper in turn, and sleeps when all are idle."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._steppers: list[Stepper] = []
        self._wake = threading.Event()
        self._closing = False
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="mlx", daemon=True).start()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` on the thread; its outcome arrives in the future."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                future.set_exception(error)

        self._calls.append(run)
        self._wake.set()
        return future

    def attach(self, stepper: Stepper) -> None:
        """From the thread itself: start to drive ``stepper``."""
        self._steppers.append(stepper)

    def detach(self, stepper: Stepper) -> None:
        """From the thread itself: stop driving ``stepper``."""
        self._steppers.remove(stepper)

    def wake(self) -> None:
        """From any thread: there may be something to do."""
        self._wake.set()

    def close(self, timeout_seconds: float = 2.0) -> bool:
        """Stop after the current step; False when that step outlasts ``timeout_seconds``."""
        self._closing = True
        self._wake.set()
        return self._stopped.wait(timeout_seconds)

    def _run(self) -> None:
        mlx.prepare_thread()
        while not self._closing:
            # Cleared before looking, so that what arrives while looking wakes the wait below.
            self._wake.clear()
            while self._calls:
                self._calls.popleft()()
            if not self._step_all():
                self._wake.wait(self._seconds_to_next())
        self._steppers.clear()
        self._stopped.set()
        # What MLX keeps for a thread is torn down after Python believes the thread has ended, and aborts the process
        # when the interpreter shuts down at that moment. A parked daemon thread is never torn down.
        threading.Event().wait()

    def _step_all(self) -> bool:
        busy = False
        for stepper in tuple(self._steppers):
            try:
                busy |= stepper.step()
            except Exception as error:  # noqa: BLE001 - its neighbours go on
                # Steppers handle their own failures; one that does not is dropped.
                _log.critical("an engine stopped for good: %s", describe(error))
                self._steppers.remove(stepper)
        return busy

    def _seconds_to_next(self) -> float | None:
        times = [at for stepper in self._steppers if (at := stepper.wake_at()) is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None
