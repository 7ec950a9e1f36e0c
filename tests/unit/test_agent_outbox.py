"""Two lanes: control frames first, bulk frames in order and bounded."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent.outbox import BULK_FRAMES_MAX, Outbox
from domain import protocol

pytestmark = pytest.mark.asyncio


def accepted(name: str) -> protocol.InferenceAccepted:
    return protocol.InferenceAccepted(name)


def error(name: str) -> protocol.InferenceError:
    return protocol.InferenceError(name, "x", 500)


class Line:
    """A socket that takes a frame only when it is told to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.allowed = asyncio.Semaphore(0)

    async def send(self, frame: str) -> None:
        await self.allowed.acquire()
        self.sent.append(json.loads(frame)["request_id"])


async def test_control_frames_overtake_bulk_frames_which_keep_their_order() -> None:
    outbox, line = Outbox(), Line()
    for number in range(3):
        await outbox.bulk(error(f"bulk {number}"))
    outbox.control(accepted("control 0"))
    outbox.control(accepted("control 1"))
    pump = asyncio.create_task(outbox.pump(line.send))
    for _ in range(5):
        line.allowed.release()
    await asyncio.wait_for(outbox.flushed(), 5)
    pump.cancel()
    assert line.sent == ["control 0", "control 1", "bulk 0", "bulk 1", "bulk 2"]


async def test_a_full_bulk_lane_makes_its_writers_wait_but_not_control_frames() -> None:
    outbox, line = Outbox(), Line()
    for number in range(BULK_FRAMES_MAX):
        await outbox.bulk(error(str(number)))
    waiting = asyncio.create_task(outbox.bulk(error("last")))
    outbox.control(accepted("control"))
    await asyncio.sleep(0)
    assert not waiting.done()
    pump = asyncio.create_task(outbox.pump(line.send))
    for _ in range(BULK_FRAMES_MAX + 2):
        line.allowed.release()
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(outbox.flushed(), 5)
    pump.cancel()
    assert (line.sent[0], line.sent[-1]) == ("control", "last")


async def test_flushed_waits_for_the_frame_that_is_being_sent() -> None:
    outbox, line = Outbox(), Line()
    pump = asyncio.create_task(outbox.pump(line.send))
    outbox.control(accepted("a"))
    flushed = asyncio.create_task(outbox.flushed())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not flushed.done()
    line.allowed.release()
    await asyncio.wait_for(flushed, 5)
    pump.cancel()
