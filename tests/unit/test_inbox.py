from __future__ import annotations

import asyncio
import threading
from uuid import UUID, uuid4

import pytest

from api import inbox as inbox_module
from api.inbox import BUFFERED_BYTES_MAX, Aborted, ConsumerGone, Inbox, MachineLost, Overflowed, Switchboard
from domain.dispatch import Refused
from domain.protocol import InferenceAccepted, InferenceResponseChunk, Sealed

JOB = "7d1c2b1e-0000-4000-8000-000000000001"
REQUEST = UUID(JOB)
SOON_SECONDS = 20.0


def chunk(size: int) -> InferenceResponseChunk:
    return InferenceResponseChunk(JOB, Sealed("key", "x" * size))


def notice(request_id: UUID = REQUEST) -> Refused:
    return Refused(request_id=request_id, attempt=1, reason="ended")


class TestOrder:
    async def test_items_come_out_in_the_order_in_which_they_came(self) -> None:
        inbox = Inbox()
        items = [InferenceAccepted(JOB), chunk(1), MachineLost(JOB), notice(), ConsumerGone(), Aborted()]
        for item in items:
            inbox.put(item)
        assert [await inbox.get(SOON_SECONDS) for _ in items] == items

    async def test_a_reader_that_waits_is_woken(self) -> None:
        inbox = Inbox()
        reading = asyncio.create_task(inbox.get(SOON_SECONDS))
        await asyncio.sleep(0)
        assert not reading.done()
        inbox.put(ConsumerGone())
        inbox.put(Aborted())
        assert await reading == ConsumerGone()
        assert await inbox.get(SOON_SECONDS) == Aborted()

    async def test_a_reader_waits_again_after_it_was_woken(self) -> None:
        inbox = Inbox()
        for item in (ConsumerGone(), Aborted(), InferenceAccepted(JOB)):
            reading = asyncio.create_task(inbox.get(SOON_SECONDS))
            await asyncio.sleep(0)
            inbox.put(item)
            assert await reading == item


class TestTime:
    async def test_nothing_in_time_is_a_timeout(self) -> None:
        with pytest.raises(TimeoutError):
            await Inbox().get(0.001)

    async def test_what_waits_is_read_with_no_time_left(self) -> None:
        inbox = Inbox()
        inbox.put(Aborted())
        assert await inbox.get(0) == Aborted()
        with pytest.raises(TimeoutError):
            await inbox.get(0)

    async def test_what_comes_after_a_timeout_is_not_lost(self) -> None:
        inbox = Inbox()
        with pytest.raises(TimeoutError):
            await inbox.get(0.001)
        inbox.put(ConsumerGone())
        inbox.put(Aborted())
        assert [await inbox.get(SOON_SECONDS), await inbox.get(SOON_SECONDS)] == [ConsumerGone(), Aborted()]

    async def test_output_that_is_dropped_leaves_the_reader_waiting(self) -> None:
        inbox = Inbox()
        inbox.mute()
        reading = asyncio.create_task(inbox.get(SOON_SECONDS))
        await asyncio.sleep(0)
        inbox.put(chunk(1))
        await asyncio.sleep(0)
        inbox.put(ConsumerGone())
        assert await reading == ConsumerGone()

    async def test_a_reader_that_is_cancelled_loses_nothing(self) -> None:
        inbox = Inbox()
        reading = asyncio.create_task(inbox.get(SOON_SECONDS))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        inbox.put(Aborted())
        assert await inbox.get(SOON_SECONDS) == Aborted()


class TestOverflow:
    async def test_as_much_as_may_be_buffered_is_read(self) -> None:
        inbox = Inbox()
        for _ in range(4):
            inbox.put(chunk(BUFFERED_BYTES_MAX // 4 - 1))
        assert [await inbox.get(SOON_SECONDS) for _ in range(4)] == [chunk(BUFFERED_BYTES_MAX // 4 - 1)] * 4

    async def test_one_byte_more_is_an_overflow_that_is_told_first(self) -> None:
        inbox = Inbox()
        inbox.put(chunk(BUFFERED_BYTES_MAX))
        inbox.put(chunk(1))
        assert await inbox.get(SOON_SECONDS) == Overflowed(JOB)

    async def test_what_was_read_makes_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inbox_module, "BUFFERED_BYTES_MAX", 100)
        inbox = Inbox()
        for _ in range(50):
            inbox.put(chunk(60))
            assert await inbox.get(SOON_SECONDS) == chunk(60)
        inbox.put(chunk(60))
        inbox.put(chunk(60))
        assert await inbox.get(SOON_SECONDS) == Overflowed(JOB)

    async def test_after_an_overflow_only_the_last_word_is_taken(self) -> None:
        inbox = Inbox()
        for _ in range(3):
            inbox.put(chunk(BUFFERED_BYTES_MAX))
        inbox.put(MachineLost(JOB))
        read = [await inbox.get(SOON_SECONDS) for _ in range(3)]
        assert read == [Overflowed(JOB), chunk(BUFFERED_BYTES_MAX), MachineLost(JOB)]
        with pytest.raises(TimeoutError):
            await inbox.get(0)


class TestForgetting:
    async def test_nothing_of_a_forgotten_attempt_is_read_and_everything_of_another(self) -> None:
        inbox = Inbox()
        other = InferenceAccepted("another")
        for item in (chunk(1), other, MachineLost(JOB)):
            inbox.put(item)
        inbox.forget(JOB)
        inbox.put(chunk(1))
        inbox.put(ConsumerGone())
        assert [await inbox.get(SOON_SECONDS), await inbox.get(SOON_SECONDS)] == [other, ConsumerGone()]

    async def test_its_output_makes_room(self) -> None:
        inbox = Inbox()
        inbox.put(InferenceResponseChunk("another", Sealed("key", "x" * BUFFERED_BYTES_MAX)))
        inbox.forget("another")
        inbox.put(chunk(BUFFERED_BYTES_MAX - 1))
        assert await inbox.get(SOON_SECONDS) == chunk(BUFFERED_BYTES_MAX - 1)


class TestSwitchboard:
    async def test_a_notice_finds_the_inbox_of_its_request(self) -> None:
        board = Switchboard()
        inbox, other = board.open(REQUEST), board.open(uuid4())
        assert board.hand_over(notice())
        assert await inbox.get(SOON_SECONDS) == notice()
        with pytest.raises(TimeoutError):
            await other.get(0.001)
        assert len(board) == 2

    async def test_a_notice_may_come_from_another_thread(self) -> None:
        board = Switchboard()
        inbox = board.open(REQUEST)
        thread = threading.Thread(target=board.hand_over, args=(notice(),))
        thread.start()
        assert await inbox.get(SOON_SECONDS) == notice()
        thread.join()

    async def test_nobody_waits_for_a_request_that_is_closed_or_was_never_here(self) -> None:
        board = Switchboard()
        assert not board.hand_over(notice())
        board.open(REQUEST)
        board.close(REQUEST)
        board.close(REQUEST)
        assert not board.hand_over(notice())
        assert len(board) == 0

    def test_a_loop_that_is_gone_takes_nothing(self) -> None:
        board = Switchboard()

        async def open_one() -> None:
            board.open(REQUEST)

        asyncio.run(open_one())
        assert not board.hand_over(notice())

    async def test_a_stopping_gateway_tells_every_open_request(self) -> None:
        board = Switchboard()
        inboxes = [board.open(uuid4()) for _ in range(3)]
        board.abort_all()
        assert [await inbox.get(SOON_SECONDS) for inbox in inboxes] == [Aborted()] * 3


async def test_only_output_of_the_asked_job_is_taken_ahead_and_only_what_is_here() -> None:
    inbox = Inbox()
    assert inbox.ready_output(JOB) is None
    ours, others, end = chunk(1), InferenceResponseChunk("another", Sealed("key", "x")), MachineLost(JOB)
    for item in (ours, others, end):
        inbox.put(item)

    assert inbox.ready_output(JOB) == ours
    assert inbox.ready_output(JOB) is None
    assert await inbox.get(SOON_SECONDS) == others
    assert inbox.ready_output(JOB) is None
    assert await inbox.get(SOON_SECONDS) == end


async def test_what_is_taken_ahead_makes_room_and_after_a_loss_nothing_is() -> None:
    inbox = Inbox()
    for _ in range(3):
        inbox.put(chunk(BUFFERED_BYTES_MAX - 1_000))
        assert inbox.ready_output(JOB) is not None
    inbox.put(chunk(BUFFERED_BYTES_MAX - 1_000))
    inbox.put(chunk(2_000))

    assert inbox.ready_output(JOB) is None
    assert await inbox.get(SOON_SECONDS) == Overflowed(JOB)
