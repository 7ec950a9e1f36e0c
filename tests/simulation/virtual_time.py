"""Time that only passes when nobody has anything to do, and randomness that a seed decides.

``VirtualLoop`` is asyncio's own loop with another way to wait: instead of sleeping until the next timer is due, it
moves its clock there. Inside of ``world_of(seed)`` the standard library tells that time and draws from the seed, so the
code under test needs no clock passed in, and the same seed makes the same run bit for bit.
"""

from __future__ import annotations

import asyncio
import datetime as datetimes
import gc
import os
import random as randoms
import selectors
import sys
import time
from asyncio import base_events
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, TypeVar
from unittest.mock import patch

import dramatiq.common

T = TypeVar("T")

BEGINNING = 1_777_636_800.0
"""Unix seconds at the start of every run: noon of 1 May 2026."""

skew_seconds: ContextVar[float] = ContextVar("skew_seconds", default=0.0)
"""How far the wall clock of whoever asks is ahead of the true time."""

_ROOMS = ("adapters.", "api.", "domain.")


class NothingLeftToDo(Exception):
    """Everybody waits for something that will never come."""


class _Waiting(selectors.BaseSelector):
    """Waits by moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise NothingLeftToDo
        if timeout > 0:
            self._loop.now += timeout
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise NotImplementedError("nothing in a simulation waits for a real file")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise NotImplementedError("nothing in a simulation waits for a real file")

    def get_map(self) -> Any:
        return {}


class VirtualLoop(base_events.BaseEventLoop):
    """``now`` is seconds since the beginning. ``after_step`` is called after each turn of the loop."""

    def __init__(self, after_step: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.now = 0.0
        self.after_step = after_step
        self._selector = _Waiting(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # private, and the only place between two turns
        self.after_step()

    def _process_events(self, event_list: list[Any]) -> None:
        """There never are any."""

    def _write_to_self(self) -> None:
        """Nobody waits elsewhere who would have to be woken."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in no time, the same way each time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class _Datetime(datetimes.datetime):
    @classmethod
    def now(cls, tz: datetimes.tzinfo | None = None) -> Any:
        return datetimes.datetime.fromtimestamp(time.time(), tz)


@contextmanager
def world_of(seed: int, loop: VirtualLoop) -> Generator[randoms.Random, None, None]:
    """Let the process tell the loop's time and draw from the seed. Returns the source of chance for everything else."""
    chance, entropy = randoms.Random(f"market:{seed}"), randoms.Random(f"entropy:{seed}")

    def monotonic() -> float:
        return loop.now

    def wall_clock() -> float:
        return BEGINNING + loop.now + skew_seconds.get()

    collected = gc.isenabled()
    gc.disable()  # finalizers must not run at a moment that the memory of the process decides
    try:
        with (
            patch.object(time, "time", wall_clock),
            patch.object(time, "monotonic", monotonic),
            patch.object(time, "perf_counter", monotonic),
            patch.object(dramatiq.common, "time", wall_clock),
            patch.object(os, "urandom", entropy.randbytes),
            patch.object(randoms, "_urandom", entropy.randbytes),
            _clock_of_modules(),
        ):
            yield chance
    finally:
        loop.close()
        if collected:
            gc.enable()


@contextmanager
def _clock_of_modules() -> Generator[None, None, None]:
    """``datetime.now`` of the product's modules, which asks the operating system past every patch of ``time``."""
    changed: list[ModuleType] = []
    for name, module in list(sys.modules.items()):
        if name.startswith(_ROOMS) and getattr(module, "datetime", None) is datetimes.datetime:
            module.datetime = _Datetime  # type: ignore[attr-defined]
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module.datetime = datetimes.datetime  # type: ignore[attr-defined]
