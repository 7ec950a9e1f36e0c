"""Processes that live in one thread, and die as a killed process does: in the middle of a line, without a last word.

Every task belongs to the process that began it. What a dead process still tries to do to the world raises
``ProcessDied``, so that the ``finally`` of its tasks changes nothing outside of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import greenlet

from tests.simulation.virtual_time import skew_seconds

R = TypeVar("R")

_running: ContextVar[Process | None] = ContextVar("running_process", default=None)


class ProcessDied(asyncio.CancelledError):
    """The process that this code ran in was killed."""


class Process:
    """``clock_skew_seconds`` is how far its wall clock is ahead."""

    def __init__(self, name: str, *, clock_skew_seconds: float = 0.0) -> None:
        self.name = name
        self.alive = True
        self.clock_skew_seconds = clock_skew_seconds
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order, so that they always end in the same one

    def start(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Run a coroutine in this process, with everything that it begins."""
        context = copy_context()
        context.run(_running.set, self)
        context.run(skew_seconds.set, self.clock_skew_seconds)
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        task.add_done_callback(_tell_failure)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        if not self.alive:
            task.cancel()

    def kill(self) -> None:
        """End everything at once."""
        self.alive = False
        for task in list(self._tasks):
            task.cancel()

    def check(self) -> None:
        """Raises ProcessDied when the process is dead."""
        if not self.alive:
            raise ProcessDied

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)


def _tell_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        task.get_loop().call_exception_handler({"message": "a process failed", "exception": task.exception()})


def task_factory(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, R], **how: Any) -> asyncio.Task[R]:
    """Let each task belong to the process of its context."""
    task = asyncio.Task(coroutine, loop=loop, **how)
    context = how.get("context")
    process = context.get(_running) if context is not None else _running.get()
    if process is not None:
        process.adopt(task)
    return task


async def run_synchronous(function: Callable[..., R], *arguments: Any) -> R:
    """Run code that was written for a thread. Where it would block (``wait_for``), the loop goes on with others."""
    fiber = greenlet.greenlet(function)
    fiber.gr_context = copy_context()
    said = fiber.switch(*arguments)
    while not fiber.dead:
        try:
            answer = await said
        except BaseException as error:
            said = fiber.throw(error)
        else:
            said = fiber.switch(answer)
    result: R = said
    return result


def wait_for(awaitable: Awaitable[R]) -> R:
    """Block inside of ``run_synchronous``."""
    parent = greenlet.getcurrent().parent
    assert parent is not None, "this blocks outside of a simulated thread"
    answer: R = parent.switch(awaitable)
    return answer
