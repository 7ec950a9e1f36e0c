"""Time that jumps, chance that repeats itself, and processes that die in the middle of a line."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from tests.simulation.network import Lane, Network
from tests.simulation.processes import Process, ProcessDied, run_synchronous, task_factory, wait_for
from tests.simulation.virtual_time import BEGINNING, NothingLeftToDo, VirtualLoop, world_of

R = TypeVar("R")


def simulated(coroutine: Coroutine[Any, Any, R], seed: int = 1) -> R:
    loop = VirtualLoop()
    loop.set_task_factory(task_factory)  # type: ignore[arg-type]
    with world_of(seed, loop):
        return loop.run_until_complete(coroutine)


def test_a_day_passes_while_nobody_has_anything_to_do() -> None:
    async def sleep() -> tuple[float, float]:
        await asyncio.sleep(86_400.0)
        return time.monotonic(), time.time()

    began = time.monotonic()

    assert simulated(sleep()) == (86_400.0, BEGINNING + 86_400.0)
    assert time.monotonic() - began < 3_600.0
    assert abs(time.time() - BEGINNING) > 1.0


def test_a_timeout_is_due_in_virtual_time() -> None:
    async def wait() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30.0):
                await asyncio.get_running_loop().create_future()
        return time.monotonic()

    assert simulated(wait()) == 30.0


def test_to_wait_for_what_never_comes_is_told() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    waiting = wait()
    with pytest.raises(NothingLeftToDo):
        simulated(waiting)
    waiting.close()


def test_chance_belongs_to_the_seed() -> None:
    async def draw() -> tuple[str, bytes]:
        return str(uuid4()), os.urandom(8)

    first = simulated(draw(), 1)

    assert simulated(draw(), 1) == first
    assert simulated(draw(), 2) != first
    assert len({str(uuid4()) for _ in range(3)}) == 3


def test_what_a_killed_process_still_tries_has_no_effect() -> None:
    done: list[str] = []

    async def work(process: Process) -> None:
        try:
            await asyncio.sleep(10.0)
        finally:
            process.check()
            done.append("cleaned up")

    async def live() -> bool:
        process = Process("one")
        working = process.start(work(process))
        await asyncio.sleep(5.0)
        process.kill()
        await asyncio.wait([working])
        return working.cancelled()

    assert simulated(live())
    assert done == []


def test_each_process_has_a_wall_clock_of_its_own() -> None:
    async def ask() -> float:
        return time.time()

    async def live() -> tuple[float, float]:
        return await Process("late", clock_skew_seconds=-2.0).start(ask()), time.time()

    late, true = simulated(live())

    assert true - late == pytest.approx(2.0)


def test_blocking_code_lets_others_go_on() -> None:
    seen: list[str] = []

    def block(name: str, seconds: float) -> str:
        for _ in range(2):
            wait_for(asyncio.sleep(seconds))
            seen.append(name)
        return name

    async def live() -> list[str]:
        return list(await asyncio.gather(run_synchronous(block, "a", 2.0), run_synchronous(block, "b", 3.0)))

    assert simulated(live()) == ["a", "b"]
    assert seen == ["a", "b", "a", "b"]


def test_blocking_code_that_is_cancelled_stops_where_it_waits() -> None:
    seen: list[str] = []

    def block() -> None:
        try:
            wait_for(asyncio.sleep(10.0))
        except ProcessDied:
            raise AssertionError("nobody died") from None
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def live() -> None:
        task = asyncio.create_task(run_synchronous(block))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])

    simulated(live())

    assert seen == ["cancelled"]


def test_frames_of_a_connection_keep_their_order_and_survive_a_cut() -> None:
    async def live() -> list[str]:
        network = Network(Random(3))
        lane = Lane(network, "a", "b")
        for number in range(50):
            if number == 20:
                network.cut("a", "b")
            lane.put(str(number))
        await asyncio.sleep(5.0)
        network.heal()
        return [await lane.get() for _ in range(50)]

    assert simulated(live()) == [str(number) for number in range(50)]
