"""A Dramatiq broker inside the process, for a coordinator that needs no other.

It keeps nothing on disk: what must not be lost is committed to the ledger before it is queued here, or drained before
the process ends.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue

from dramatiq import Broker, Consumer, Message, MessageProxy, Middleware
from dramatiq.errors import QueueNotFound

QUEUE_MESSAGES_MAX = 10_000
DEAD_LETTERS_MAX = 1_000
LOOK_SECONDS = 0.01


class QueueIsFull(Exception):
    """The scheduler's queue has no room; try again."""


class EmbeddedBroker(Broker):
    """Bounded queues in memory. A delayed message is put back by a timer thread the moment it is due.

    ``dead_letters`` holds the newest messages that were given up, as they were sent and without any exception.
    """

    def __init__(self, middleware: list[Middleware], *, queue_messages_max: int = QUEUE_MESSAGES_MAX) -> None:
        super().__init__(middleware)
        self._queue_messages_max = queue_messages_max
        self._delays = _DelayLine(self._put)
        self._unfinished = _Unfinished()
        self.dead_letters: deque[Message[object]] = deque(maxlen=DEAD_LETTERS_MAX)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = SimpleQueue()
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[object], *, delay: int | None = None) -> Message[object]:
        """Queue a message, ``delay`` milliseconds from now.

        Raises:
            QueueIsFull: the bound is reached.
            QueueNotFound: there is no such queue.
        """
        self._queue(message.queue_name)
        self.emit_before("enqueue", message, delay)
        self._unfinished.add(message.queue_name)
        try:
            if delay:
                self._delays.add(time.monotonic() + delay / 1000, message)
            else:
                self._put(message)
        except QueueIsFull:
            self._unfinished.done(message.queue_name)
            raise
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> Consumer:
        queue = self._queue(queue_name)
        finished = partial(self._unfinished.done, queue_name)
        return _EmbeddedConsumer(queue, self._queue_messages_max, self.dead_letters, finished, prefetch, timeout)

    def flush(self, queue_name: str) -> None:
        queue = self._queue(queue_name)
        while True:
            try:
                queue.get_nowait()
            except Empty:
                return
            self._unfinished.done(queue_name)

    def drain(self, queue_name: str, *, seconds: float) -> int:
        """Wait until the workers are done with a queue, delayed messages included, which are due at once.

        Returns:
            How many messages were left when the time was up.
        """
        self._delays.hasten(queue_name)
        return self._unfinished.wait(queue_name, seconds)

    def close(self) -> None:
        self._delays.close()

    def _put(self, message: Message[object]) -> None:
        queue = self._queue(message.queue_name)
        if queue.qsize() >= self._queue_messages_max:
            raise QueueIsFull(QueueIsFull.__doc__)
        queue.put(message.encode())

    def _queue(self, queue_name: str) -> SimpleQueue[bytes]:
        try:
            found: SimpleQueue[bytes] = self.queues[queue_name]
        except KeyError:
            raise QueueNotFound(queue_name) from None  # type: ignore[no-untyped-call]  # dramatiq's errors are untyped
        return found


class _Unfinished:
    """Counts the messages of each queue that are neither acknowledged nor dead, wherever they are just now.

    An event loop counts here for each request, so nothing is notified under the lock: whoever waits looks again.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, queue_name: str) -> None:
        with self._lock:
            self._counts[queue_name] += 1

    def done(self, queue_name: str) -> None:
        with self._lock:
            self._counts[queue_name] -= 1

    def wait(self, queue_name: str, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self._counts[queue_name] and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        return self._counts[queue_name]


class _EmbeddedConsumer(Consumer):
    def __init__(
        self,
        queue: SimpleQueue[bytes],
        queue_messages_max: int,
        dead_letters: deque[Message[object]],
        finished: Callable[[], None],
        prefetch: int,
        timeout_ms: int,
    ) -> None:
        self._queue = queue
        self._queue_messages_max = queue_messages_max
        self._dead_letters = dead_letters
        self._finished = finished
        self._timeout_seconds = timeout_ms / 1000
        # A worker holds at most this many messages, so that what it holds stays bounded too.
        self._room = threading.Semaphore(prefetch)

    def ack(self, message: MessageProxy) -> None:
        self._finished()
        self._room.release()

    def nack(self, message: MessageProxy) -> None:
        self._dead_letters.append(message._message)
        self._finished()
        self._room.release()

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Hand back what a stopping worker holds; what finds no room is a dead letter, so that stopping never hangs."""
        for message in messages:
            if self._queue.qsize() < self._queue_messages_max:
                self._queue.put(message.encode())
            else:
                self._dead_letters.append(message._message)
                self._finished()

    def __next__(self) -> MessageProxy | None:
        if not self._room.acquire(timeout=self._timeout_seconds):
            return None
        try:
            data = self._queue.get(timeout=self._timeout_seconds)
        except Empty:
            self._room.release()
            return None
        return MessageProxy(Message.decode(data))


class _DelayLine:
    """Hands messages over when they are due, the earliest first."""

    def __init__(self, hand_over: Callable[[Message[object]], None]) -> None:
        self._hand_over = hand_over
        self._due: list[tuple[float, int, Message[object]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scheduler-delays", daemon=True)
        self._thread.start()

    def add(self, due_at: float, message: Message[object]) -> None:
        with self._changed:
            if len(self._due) >= QUEUE_MESSAGES_MAX:
                raise QueueIsFull(QueueIsFull.__doc__)
            heapq.heappush(self._due, (due_at, next(self._order), message))
            self._changed.notify()

    def hasten(self, queue_name: str) -> None:
        """Let everything that waits for a queue be due now, in its order."""
        now = time.monotonic()
        with self._changed:
            self._due = [
                (min(due_at, now) if message.queue_name == queue_name else due_at, order, message)
                for due_at, order, message in sorted(self._due, key=lambda waiting: waiting[:2])
            ]
            heapq.heapify(self._due)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                due_at, _, message = heapq.heappop(self._due)
            try:
                self._hand_over(message)
            except QueueIsFull:
                # It had its place in this line already, so the bound does not apply to it.
                with self._changed:
                    heapq.heappush(self._due, (due_at + 1.0, next(self._order), message))
