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

from domain.dispatch import Assigned, Notice
from domain.protocol import InferenceAccepted, InferenceComplete, InferenceError, InferenceResponseChunk

BUFFERED_BYTES_MAX = 8 * 1024 * 1024
"""More unread output than this means that its reader is gone in all but name."""


class MachineLost(NamedTuple):
    """The connection that a job ran on is gone."""

    request_id: str


class SendFailed(NamedTuple):
    """A machine could not be handed its job."""

    request_id: str


class Overflowed(NamedTuple):
    """The reader is slower than a machine writes, by more than may be buffered: what the job says from here on is
    dropped, up to its last word."""

    request_id: str


class NotQueued(NamedTuple):
    """The scheduler's broker did not take an attempt."""

    request_id: UUID
    attempt: int


class ConsumerGone(NamedTuple):
    """Whoever asked has hung up."""


class KeyRevoked(NamedTuple):
    """The key that a request was made with is revoked."""


class Aborted(NamedTuple):
    """This gateway cannot finish the request: it stops, or it lost its lease."""


JobEvent = (
    InferenceAccepted
    | InferenceResponseChunk
    | InferenceComplete
    | InferenceError
    | MachineLost
    | SendFailed
    | Overflowed
)
Interruption = ConsumerGone | KeyRevoked | Aborted
Item = JobEvent | Notice | NotQueued | Interruption


class Inbox:
    """A queue with one reader. Writers never wait; output beyond the bound is dropped, and the reader is told."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._buffered_bytes = 0
        self._overflowed: set[str] = set()
        self._forgotten: set[str] = set()
        self._muted = False
        self._wake: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        if isinstance(item, JobEvent) and item.request_id in self._forgotten:
            return
        if isinstance(item, InferenceResponseChunk):
            self._put_output(item)
        else:
            self._items.append(item)
        self._wake_reader()

    def _put_output(self, chunk: InferenceResponseChunk) -> None:
        if self._muted or chunk.request_id in self._overflowed:
            return
        size = _size_of(chunk)
        if self._items and self._buffered_bytes + size > BUFFERED_BYTES_MAX:
            self._overflowed.add(chunk.request_id)
            self._items.appendleft(Overflowed(chunk.request_id))
            return
        self._buffered_bytes += size
        self._items.append(chunk)

    def interrupt(self, item: Interruption) -> None:
        """Put what makes everything that waits pointless."""
        self._items.appendleft(item)
        self._wake_reader()

    def mute(self) -> None:
        """Drop output, waiting and to come: only how the answer ends is still of interest."""
        self._muted, self._buffered_bytes = True, 0
        self._items = deque(item for item in self._items if not _size_of(item))

    def forget(self, job_id: str) -> None:
        """Drop whatever an attempt that is over still says, waiting and to come."""
        self._forgotten.add(job_id)
        self._items = deque(item for item in self._items if getattr(item, "request_id", None) != job_id)
        self._buffered_bytes = sum(map(_size_of, self._items))

    async def get(self, timeout_seconds: float) -> Item:
        """The next item; one that waits already takes no time.

        Raises:
            TimeoutError: none came in time.
        """
        if not self._items:
            if timeout_seconds <= 0:
                raise TimeoutError
            await self._wait(timeout_seconds)
        item = self._items.popleft()
        self._buffered_bytes -= _size_of(item)
        return item

    async def _wait(self, timeout_seconds: float) -> None:
        """A timer of one's own costs a fraction of asyncio's scope, and every request comes here several times."""
        loop = asyncio.get_running_loop()
        over = False

        def time_is_up() -> None:
            nonlocal over
            over = True
            self._wake_reader()

        timer = loop.call_later(timeout_seconds, time_is_up)
        try:
            while not self._items:  # a wake may be for output that was dropped
                if over:
                    raise TimeoutError
                self._wake = loop.create_future()
                await self._wake
        finally:
            timer.cancel()

    def ready_output(self, job_id: str) -> InferenceResponseChunk | None:
        """The next item, if it is here already and output of this job."""
        if not self._items:
            return None
        item = self._items[0]
        if not isinstance(item, InferenceResponseChunk) or item.request_id != job_id:
            return None
        self._items.popleft()
        self._buffered_bytes -= _size_of(item)
        return item

    def unread_assignments(self) -> list[Assigned]:
        """Machines that were found and that nobody heard of."""
        return [item for item in self._items if isinstance(item, Assigned)]

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _size_of(item: Item) -> int:
    """The bytes of output that an item holds."""
    if not isinstance(item, InferenceResponseChunk):
        return 0
    return 1 + len(item.data) + (len(item.encrypted_data.ciphertext) if item.encrypted_data else 0)


class Switchboard:
    """The inboxes of the requests that this gateway has open."""

    def __init__(self) -> None:
        self._inboxes: dict[UUID, Inbox] = {}
        self._keys: dict[UUID, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._inboxes)

    def open(self, request_id: UUID, key_id: str = "") -> Inbox:
        self._keys[request_id] = key_id
        self._loop = asyncio.get_running_loop()
        inbox = self._inboxes[request_id] = Inbox()
        return inbox

    def close(self, request_id: UUID) -> None:
        self._inboxes.pop(request_id, None)
        self._keys.pop(request_id, None)

    def keys_in_use(self) -> set[str]:
        return set(self._keys.values())

    def revoke(self, key_id: str) -> None:
        """Interrupt every request of a key."""
        for request_id, used in list(self._keys.items()):
            if used == key_id:
                self._inboxes[request_id].interrupt(KeyRevoked())

    def hand_over(self, notice: Notice) -> bool:
        """Take a notice from any thread; whether anybody waits for it."""
        inbox = self._inboxes.get(notice.request_id)
        if inbox is None or self._loop is None or self._loop.is_closed():
            return False
        self._loop.call_soon_threadsafe(inbox.put, notice)
        return True

    def abort_all(self) -> None:
        for inbox in self._open():
            inbox.interrupt(Aborted())

    def _open(self) -> Iterator[Inbox]:
        yield from list(self._inboxes.values())
