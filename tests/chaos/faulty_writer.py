"""A writer that kills its own process at a numbered point, and two that are broken on purpose."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

from adapters.postgres.writer import LedgerWriter
from projections.balances import Balances
from projections.open_requests import OpenRequests
from projections.usage import UsageEntries

STEPS = ("connect", "preload", "take_up", "lock", "decide", "append", "commit", "wake")
STATEMENTS = tuple(f"{step} statement {number}" for step in ("append", "commit") for number in range(4))
"""What an append and a commit send, by its place; a batch that changes little sends fewer."""

OUTCOME_POINTS = ("before was_committed", "after was_committed")
"""Only a writer whose connection broke at a commit comes here."""

POINTS = (
    *(f"{when} {what}" for what in (*STEPS, *STATEMENTS, "COMMIT") for when in ("before", "after")),
    "while COMMIT",
    *OUTCOME_POINTS,
)
"""Every place to die at. A commit's statements are sent without waiting, so after COMMIT it was sent; it was answered
before wake."""


class FaultyWriter(LedgerWriter):
    """Before each commit it writes down what each command of the batch recorded, so that others can compare.

    ``intents`` is a file descriptor; its lines are batch, correlation id and number of events.
    """

    def __init__(self, url: str, intents: int, fail_at: str, occurrence: int) -> None:
        super().__init__(url, [Balances(), UsageEntries(), OpenRequests()])
        self._intents = intents
        self._fail_at = fail_at
        self._occurrence = occurrence
        self._batch: list[Any] = []
        self._batches = 0

    def passes(self, point: str) -> None:
        if point == self._fail_at:
            self._occurrence -= 1
            if self._occurrence == 0:
                if point == "while COMMIT":  # it is being sent, worked on, or answered by then
                    threading.Thread(target=_die, args=(os.getpid() % 40 / 10_000,), daemon=True).start()
                else:
                    _die(0)

    def _write(self, batch: Any) -> None:
        self._batch = batch
        self._batches += 1
        super()._write(batch)

    def _connect(self) -> Any:
        self.passes("before connect")
        connection = super()._connect()
        self.passes("after connect")
        return connection

    def _preload(self, connection: Any, batch: Any) -> Any:
        self.passes("before preload")
        rest = super()._preload(connection, batch)
        self.passes("after preload")
        return rest

    def _take_up(self, refs: Any, rows: Any) -> None:
        self.passes("before take_up")
        super()._take_up(refs, rows)
        self.passes("after take_up")

    def _lock(self, connection: Any, refs: Any) -> Any:
        self.passes("before lock")
        locked = super()._lock(connection, refs)
        self.passes("after lock")
        return locked

    def _decide(self, connection: Any, unit: Any, call: Any) -> None:
        self.passes("before decide")
        before = len(unit.events)
        super()._decide(connection, unit, call)
        recorded = len(unit.events) - before
        os.write(self._intents, f"{self._batches} {call.command.correlation_id} {recorded}\n".encode())
        self.passes("after decide")

    def _append(self, connection: Any, unit: Any, head: int, done: int) -> None:
        self.passes("before append")
        super()._append(_Statements(connection, self, "append"), unit, head, done)
        self.passes("after append")

    def _commit(self, connection: Any, unit: Any, head: int) -> None:
        self.passes("before commit")
        super()._commit(_Statements(connection, self, "commit"), unit, head)
        self.passes("after commit")

    def _was_committed(self, unit: Any, head: int) -> bool:
        self.passes("before was_committed")
        answer = super()._was_committed(unit, head)
        self.passes("after was_committed")
        return answer

    def _wake(self, batch: Any) -> None:
        self.passes("before wake")
        super()._wake(batch)
        self.passes("after wake")


class AcknowledgesTooEarly(FaultyWriter):
    """Tells the callers before the commit."""

    def _commit(self, connection: Any, unit: Any, head: int) -> None:
        LedgerWriter._wake(self, self._batch)
        if unit.events:
            time.sleep(0.3)  # long enough for the callers to hear it
            self.passes("acknowledged")
        super()._commit(connection, unit, head)


class CommitsInParts(FaultyWriter):
    """Writes the first event of a batch in a transaction of its own."""

    def _append(self, connection: Any, unit: Any, head: int, done: int) -> None:
        if len(unit.events) - done < 2:
            super()._append(connection, unit, head, done)
            return
        first = SimpleNamespace(events=unit.events[: done + 1], now=unit.now, touched=unit.touched)
        LedgerWriter._append(self, connection, first, head, done)
        connection.execute("COMMIT")
        connection.execute("BEGIN")
        self.passes("between the parts")
        super()._append(connection, unit, head, done + 1)


WRITERS = {cls.__name__: cls for cls in (FaultyWriter, AcknowledgesTooEarly, CommitsInParts)}


class _Statements:
    """A connection that a step sends its statements through."""

    def __init__(self, connection: Any, writer: FaultyWriter, step: str) -> None:
        self._connection = connection
        self._writer = writer
        self._step = step
        self._sent = 0

    def execute(self, statement: str, *arguments: Any, **options: Any) -> Any:
        name = "COMMIT" if statement == "COMMIT" else f"{self._step} statement {self._sent}"
        self._sent += 1
        self._writer.passes(f"before {name}")
        if name == "COMMIT":
            self._writer.passes("while COMMIT")
        cursor = self._connection.execute(statement, *arguments, **options)
        self._writer.passes(f"after {name}")
        return cursor


def _die(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
