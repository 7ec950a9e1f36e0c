"""The inbox of one request: everything that can happen to it arrives here, in order.

Notices from the scheduler, frames from the machine, the consumer leaving, the gateway stopping. One queue means that
one coroutine decides, and that no two of them can race.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from domain.dispatch import Notice
from domain.protocol import InferenceAccepted, InferenceComplete, InferenceError, InferenceResponseChunk

BUFFERED_BYTES_MAX = 8 * 1024 * 1024
"""More unread output than this means that its reader is gone in all but name."""


class MachineLost(NamedTuple):
    """The connection that a job ran on is gone."""

    request_id: str


class ConsumerGone(NamedTuple):
    """Whoever asked has hung up."""


class Aborted(NamedTuple):
    """This gateway cannot finish the request: it stops, or it lost its lease."""


JobEvent = InferenceAccepted | InferenceResponseChunk | InferenceComplete | InferenceError | MachineLost
Item = JobEvent | Notice | ConsumerGone | Aborted


class InboxOverflow(Exception):
    """The consumer reads slower than the machine writes, by more than may be buffered."""


class Inbox:
    """A queue with one reader. Writers never wait."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._buffered_bytes = 0
        self._wake: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        if isinstance(item, InferenceResponseChunk) and item.encrypted_data is not None:
            self._buffered_bytes += len(item.encrypted_data.ciphertext)
        self._items.append(item)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def get(self, timeout_seconds: float) -> Item:
        """The next item.

        Raises:
            TimeoutError: none came in time.
            InboxOverflow: too much waits to be read.
        """
        if not self._items:
            self._wake = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(timeout_seconds):
                await self._wake
        if self._buffered_bytes > BUFFERED_BYTES_MAX:
            raise InboxOverflow
        item = self._items.popleft()
        if isinstance(item, InferenceResponseChunk) and item.encrypted_data is not None:
            self._buffered_bytes -= len(item.encrypted_data.ciphertext)
        return item


class Switchboard:
    """The inboxes of the requests that this gateway has open."""

    def __init__(self) -> None:
        self._inboxes: dict[UUID, Inbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._inboxes)

    def open(self, request_id: UUID) -> Inbox:
        self._loop = asyncio.get_running_loop()
        inbox = self._inboxes[request_id] = Inbox()
        return inbox

    def close(self, request_id: UUID) -> None:
        self._inboxes.pop(request_id, None)

    def hand_over(self, notice: Notice) -> bool:
        """Take a notice from any thread; whether anybody waits for it."""
        inbox = self._inboxes.get(notice.request_id)
        if inbox is None or self._loop is None or self._loop.is_closed():
            return False
        self._loop.call_soon_threadsafe(inbox.put, notice)
        return True

    def abort_all(self) -> None:
        for inbox in self._open():
            inbox.put(Aborted())

    def _open(self) -> Iterator[Inbox]:
        yield from list(self._inboxes.values())
