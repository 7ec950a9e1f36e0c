"""The group-commit writer: the only door through which events enter the log.

One thread takes what gathered while the last commit was in flight and writes it in one transaction under the log's head
row, so every decision is made on the latest truth and a batch costs one fsync. Several writers on one database take
turns at the head row and catch up on each other's events from the log's tail.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import psycopg
from eventsourcing.persistence import StoredEvent

from adapters.postgres import sql
from adapters.postgres.arrays import pack_lists
from adapters.postgres.mapper import EventMapper
from adapters.postgres.pool import KEEPALIVE
from adapters.postgres.unit import AggregateCache, BatchUnit, NotLoaded
from domain import events
from domain.errors import (
    DarkbloomError,
    InternalError,
    InvariantViolated,
    LedgerBusy,
    LedgerHalted,
    LedgerUnavailable,
)
from domain.eventsourced import Aggregate, Ref, Written
from domain.invariants import BatchCheck
from domain.ledger import Command

log = logging.getLogger(__name__)

R = TypeVar("R")
Connection = psycopg.Connection[tuple[Any, ...]]
Rows = psycopg.Cursor[tuple[Any, ...]]

TAIL_EVENTS_MAX = 20_000
"""Further behind than this, starting again from an empty cache is cheaper than catching up."""

SLICE_COMMANDS = 100
"""A batch is sent in parts of so many commands, so that deciding and storing overlap."""

SNAPSHOT_EVENTS = 100
"""An aggregate that grows gets a snapshot after this many events, so loading it never reads many more. A process that
starts loads every busy wallet once, and should not stumble over that."""

APPLICATION = "darkbloom ledger"
"""What the sessions of writers are called in the server."""

SILENT_SECONDS_MAX = 30.0
"""How long a writer may leave the server waiting in a transaction, and how long others wait for the head. A host that
vanished or stands still can hold the head, and the server would wait for it for hours."""

OUTCOME_SECONDS_MAX = 30.0
"""How long the writer looks for the outcome of a commit that got no answer, before it says so."""


class InlineProjection(Protocol):
    """A read model that must show a write at once: its statements run in the write's own transaction.

    With ``needs_final_state`` they are asked for once, when the batch is decided; otherwise for each part of its
    events, so that PostgreSQL runs them while the next part is decided.
    """

    needs_final_state: bool

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]: ...


class _Call(Generic[R]):
    """A command with whoever waits for it: a thread on the future, or a coroutine on its loop."""

    __slots__ = ("command", "error", "future", "loop", "result")

    def __init__(self, command: Command[R], future: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.command = command
        self.future = future
        self.loop = loop
        self.result: R | None = None
        self.error: Exception | None = None

    def resolve(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class LedgerWriter:
    """Runs commands against the ledger.

    A batch's time is the database's, so that several writers have one clock; ``clock`` takes its place in tests.
    Recorded times never run backwards even when the clock does.
    """

    def __init__(
        self,
        dsn: str,
        inline: Sequence[InlineProjection],
        *,
        clock: Callable[[], datetime] | None = None,
        queue_max: int = 10_000,
        batch_max: int = 500,
        cache_max: int = 50_000,
    ) -> None:
        self._dsn = dsn
        self._inline_by_part = [projection for projection in inline if not projection.needs_final_state]
        self._inline_at_end = [projection for projection in inline if projection.needs_final_state]
        self._clock = clock
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._mapper = EventMapper()
        self._cache = AggregateCache(cache_max)
        self._seen_position = -1  # none: there is nothing to bring up to date
        self._stops: int | None = None
        self._connection: Connection | None = None
        self._queue: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._check = BatchCheck()
        self._stopping = False
        self._halted = False
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)

    # --- for callers ---------------------------------------------------------------------------------------------

    @property
    def halted(self) -> bool:
        """Whether it stopped for good: a batch would have broken the books, or a check found them broken."""
        return self._halted

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued, then end."""
        with self._door:  # whoever came in before is queued before the end is
            self._stopping = True
            self._queue.put(None)
        self._thread.join()
        if self._connection is not None:
            self._connection.close()

    def execute(self, command: Command[R], *, timeout_seconds: float | None = 60.0) -> R:
        """Run a command from a thread and wait for its commit.

        Raises:
            DarkbloomError: the command's own refusal.
            LedgerUnavailable: it was not written, or (after a lost connection) nobody can tell yet; it may be repeated.
        """
        future: Future[R] = Future()
        self._enqueue(_Call(command, future, None))
        try:
            return future.result(timeout_seconds)
        except TimeoutError:
            raise LedgerUnavailable from None

    async def run(self, command: Command[R]) -> R:
        """The same from a coroutine, without blocking its loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._enqueue(_Call(command, future, loop))
        return await future

    def _enqueue(self, call: _Call[Any]) -> None:
        with self._door:
            if self._halted:
                raise LedgerHalted
            if self._stopping:
                raise LedgerUnavailable("The ledger is shutting down; nothing was charged, try again.")
            if self._queue.qsize() >= self._queue_max:
                raise LedgerBusy
            self._queue.put(call)

    # --- the writer's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._look_at_head(self._connect())  # now, so that a stop before the first command counts
        except psycopg.Error as error:
            self._lose_connection(error)  # the first batch tries again
        while batch := self._take_batch():
            try:
                self._write(batch)
            except Exception:  # the thread must outlive every failure; each caller gets its own answer
                log.exception("a batch failed")
                self._cache.clear()
                self._fail(batch, InternalError())
            self._wake(batch)
            self._cache.shrink()

    def _take_batch(self) -> list[_Call[Any]]:
        """Wait for work, then take all that is there. Empty when the writer stops: nothing is queued behind that."""
        first = self._queue.get()
        if first is None:
            return []
        batch = [first]
        while len(batch) < self._batch_max:
            try:
                call = self._queue.get_nowait()
            except Empty:
                break
            if call is None:
                self._queue.put(None)
                break
            batch.append(call)
        return batch

    def _write(self, batch: list[_Call[Any]]) -> None:
        if self._halted:
            self._fail(batch, LedgerHalted())
            return
        turn = self._take_turn(batch)
        if turn is None:
            return
        connection, head, now = turn
        unit = BatchUnit(self._cache, now)
        try:
            with connection.pipeline():
                for start in range(0, len(batch), SLICE_COMMANDS):
                    done = len(unit.events)
                    for call in batch[start : start + SLICE_COMMANDS]:
                        self._decide(connection, unit, call)
                    self._append(connection, unit, head, done)
                self._commit(connection, unit, head)
        except psycopg.Error as error:
            self._cache.evict(unit.touched.values())
            self._lose_connection(error)
            if not isinstance(error, psycopg.OperationalError) or not self._was_committed(unit, head):
                self._fail(batch, LedgerUnavailable())
                return
        except InvariantViolated as violation:
            self._halt(batch, violation)
            return
        except BaseException:
            self._cache.evict(unit.touched.values())
            self._lose_connection(None)
            raise
        self._seen_position = head + len(unit.events)

    def _take_turn(self, batch: list[_Call[Any]]) -> tuple[Connection, int, datetime] | None:
        """Load what the batch needs and take the head; None when that failed and the batch has its answer."""
        try:
            connection = self._connect()
            return connection, *self._lock(connection, self._preload(connection, batch))
        except psycopg.Error as error:
            self._lose_connection(error)
            self._fail(batch, LedgerUnavailable())
            if isinstance(error, psycopg.errors.QueryCanceled):
                self._end_silent_writers()
        except InvariantViolated as violation:
            self._halt(batch, violation)
        except BaseException:
            self._lose_connection(None)  # it may hold the head, which everybody else waits for
            raise
        return None

    def _halt(self, batch: list[_Call[Any]], violation: InvariantViolated) -> None:
        """Decisions went wrong in a way that no command noticed, so whatever this process decides next is in doubt."""
        self._halted = True
        log.critical("the ledger stops, and nothing of this batch was written: %s", violation)
        self._lose_connection(None)
        self._fail(batch, LedgerHalted())

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=5, application_name=APPLICATION, **KEEPALIVE
            )
            self._connection.execute(sql.LIMIT_WAITS, {"milliseconds": str(int(SILENT_SECONDS_MAX * 1000))})
            self._connection.execute(sql.LOOK_UP_BY_KEY)
            pack_lists(self._connection)
        return self._connection

    def _end_silent_writers(self) -> None:
        """The head did not come free in time: end those that may hold it and say nothing."""
        try:
            row = self._connect().execute(sql.END_SILENT_WRITERS, (APPLICATION, SILENT_SECONDS_MAX)).fetchone()
        except psycopg.Error as error:
            self._lose_connection(error)
        else:
            log.warning("the log's head was held for too long; %d silent writers were ended", row[0] if row else 0)

    def _lose_connection(self, error: Exception | None) -> None:
        if error is not None:
            log.warning("the ledger's connection failed: %s", type(error).__name__)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _preload(self, connection: Connection, batch: list[_Call[Any]]) -> list[Ref]:
        """Load what the commands declare and what can be long before the head is locked, so that others wait less.
        Returns the rest of what is missing: short histories, mostly of requests that are new."""
        cache = self._cache
        missing = {ref.id.int: ref for call in batch for ref in call.command.needs() if ref.id not in cache}
        if self._seen_position < 0:
            self._seen_position = self._look_at_head(connection)
        if long := [ref for ref in missing.values() if ref.kind.SNAPSHOT_VERSION]:
            self._load(connection, long)
        return [ref for ref in missing.values() if not ref.kind.SNAPSHOT_VERSION]

    def _look_at_head(self, connection: Connection) -> int:
        """Where the log stands. The first look also tells which stops were before this writer."""
        row = connection.execute(sql.HEAD_AT_START).fetchone()
        assert row is not None
        if self._stops is None:
            self._stops = row[1]
        position: int = row[0]
        return position

    def _load(self, connection: Connection, refs: Sequence[Ref]) -> None:
        self._take_up(refs, self._ask_for(connection, refs))

    def _ask_for(self, connection: Connection, refs: Sequence[Ref]) -> Rows:
        wanted = {"ids": [ref.id for ref in refs], "class_versions": [ref.kind.SNAPSHOT_VERSION for ref in refs]}
        return connection.execute(sql.LOAD_AGGREGATES, wanted, prepare=True, binary=True)

    def _take_up(self, refs: Sequence[Ref], rows: Rows) -> None:
        """Put aggregates into the cache. One whose history cannot be read stays out and fails whoever needs it."""
        blank = {ref.id: ref.kind(ref.id) for ref in refs}
        for originator_id, history in groupby(rows.fetchall(), key=lambda row: row[0]):
            try:
                self._replay(blank[originator_id], history)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the others are read
                log.critical("the history of %s cannot be read: %s", originator_id, type(error).__name__)
                del blank[originator_id]
        for aggregate in blank.values():
            self._cache.put(aggregate)

    def _replay(self, aggregate: Aggregate, history: Iterable[tuple[Any, ...]]) -> None:
        for originator_id, version, topic, state in history:
            if topic is None:
                aggregate.restore(state)
                aggregate.version = aggregate.snapshot_at = version
            else:
                self._mapper.to_domain_event(StoredEvent(originator_id, version, topic, state)).evolve(aggregate)

    def _lock(self, connection: Connection, refs: Sequence[Ref]) -> tuple[int, datetime]:
        """Take the head, load aggregates on the same way to the server, and follow what other writers appended since
        this one last held it. Returns the head's position and the batch's time.

        Raises:
            InvariantViolated: a check of the tables stopped the writers since this one began.
        """
        with connection.pipeline():
            histories = self._ask_for(connection, refs) if refs else None
            connection.execute("BEGIN")
            head = connection.execute(sql.LOCK_HEAD, prepare=True)
        row = head.fetchone()
        assert row is not None
        position, recorded_at, stops, clock = row
        if stops != self._stops:
            raise InvariantViolated("a check of the tables found the books wrong; the table ledger_stops says where")
        if histories is not None:
            self._take_up(refs, histories)
        if position > self._seen_position:
            self._follow(connection, position)
        now = clock if self._clock is None else self._clock()
        return position, max(now.astimezone(UTC), recorded_at.astimezone(UTC))

    def _follow(self, connection: Connection, position: int) -> None:
        """Apply what others appended up to a position to the aggregates that are here."""
        if position - self._seen_position > TAIL_EVENTS_MAX:
            self._cache.clear()
        else:
            tail = (self._seen_position, TAIL_EVENTS_MAX)
            for row in connection.execute(sql.LOG_TAIL, tail, prepare=True, binary=True).fetchall():
                known = self._cache.get(row[0])
                if known is not None and row[1] > known.version:
                    self._replay_or_forget(known, row)
        self._seen_position = position

    def _replay_or_forget(self, aggregate: Aggregate, row: tuple[Any, ...]) -> None:
        try:
            self._replay(aggregate, (row,))
        except Exception as error:  # noqa: BLE001  # it fails whoever needs its aggregate, and nobody else
            log.critical("the history of %s cannot be read: %s", aggregate.id, type(error).__name__)
            self._cache.evict([aggregate])

    def _decide(self, connection: Connection, unit: BatchUnit, call: _Call[Any]) -> None:
        while True:
            try:
                call.result, call.error = unit.run(call.command), None
            except NotLoaded as missing:
                self._load(connection, (missing.ref,))
                if missing.ref.id in self._cache:
                    continue
                call.error = InternalError()
            except InvariantViolated:
                log.critical("%s would break the books and was refused", type(call.command).__name__, exc_info=True)
                call.error = InternalError()
            except DarkbloomError as error:
                call.error = error
            except Exception:
                log.exception("%s failed", type(call.command).__name__)
                call.error = InternalError()
            return

    def _append(self, connection: Connection, unit: BatchUnit, head: int, done: int) -> None:
        """Send what the batch recorded after its first ``done`` events. PostgreSQL stores it while the next commands
        are decided."""
        recorded = unit.events[done:]
        if not recorded:
            return
        columns: list[list[Any]] = [
            [event.originator_id for event in recorded],
            [event.originator_version for event in recorded],
            [event.TOPIC for event in recorded],
            [events.encode(event) for event in recorded],
        ]
        connection.execute(sql.APPEND_EVENTS, (head + done, unit.now, *columns), prepare=True)
        self._show(connection, self._inline_by_part, Written(head + done + 1, unit.now, recorded, unit.touched))

    def _commit(self, connection: Connection, unit: BatchUnit, head: int) -> None:
        """Send what else belongs to the batch, and commit; the pipeline's end waits for the answers."""
        if not unit.events:
            # Nothing to lose, so nothing to wait for. A rollback would cost psycopg its prepared statements.
            connection.execute(sql.COMMIT_WITHOUT_WAITING)
            connection.execute("COMMIT")
            return
        written = Written(head + 1, unit.now, unit.events, unit.touched)
        self._check.check(written)
        last = head + len(unit.events)
        self._show(connection, self._inline_at_end, written)
        if grown := [aggregate for aggregate in unit.touched.values() if _wants_snapshot(aggregate)]:
            connection.execute(sql.KEEP_SNAPSHOTS, _snapshots(grown), prepare=True)
        connection.execute(sql.MOVE_HEAD, (last, unit.now), prepare=True)
        connection.execute("COMMIT")

    def _show(self, connection: Connection, projections: Iterable[InlineProjection], written: Written) -> None:
        for projection in projections:
            for statement, parameters in projection.statements(written):
                connection.execute(statement, parameters, prepare=True)

    def _was_committed(self, unit: BatchUnit, head: int) -> bool:
        """Find out what became of a batch whose commit got no answer, by looking its first event up.

        The head row makes this certain: positions are handed out under it, so another batch's event stands there, or
        this one's, or none; and the lost session's lock is waited for, so it can no longer commit afterwards.
        """
        if not unit.events:
            return False
        first = self._mapper.to_stored_event(unit.events[0])
        deadline = time.monotonic() + OUTCOME_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                connection = self._connect()
                with connection.transaction():
                    connection.execute(sql.LOCK_HEAD)
                    row = connection.execute(sql.EVENT_AT, (head + 1,), binary=True).fetchone()
                return row is not None and row == (first.originator_id, first.originator_version, first.state)
            except psycopg.OperationalError as error:
                self._lose_connection(error)
                time.sleep(0.2)
        log.error("the outcome of a commit could not be found out in %s s", OUTCOME_SECONDS_MAX)
        return False

    def _fail(self, batch: list[_Call[Any]], error: DarkbloomError) -> None:
        """Nothing of the batch was written. Refusals fall too: they were decided beside what is not there."""
        for call in batch:
            call.error = error

    def _wake(self, batch: list[_Call[Any]]) -> None:
        """Answer every caller; coroutines of one loop are woken together, with one hop."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Call[Any]]] = defaultdict(list)
        for call in batch:
            if call.loop is None:
                call.resolve()
            else:
                by_loop[call.loop].append(call)
        for loop, calls in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve_all, calls)
            except RuntimeError:  # the loop is closed, so nobody waits any more
                continue


def _wants_snapshot(aggregate: Aggregate) -> bool:
    return aggregate.SNAPSHOT_VERSION > 0 and aggregate.version - aggregate.snapshot_at >= SNAPSHOT_EVENTS


def _snapshots(grown: Sequence[Aggregate]) -> list[list[Any]]:
    """The columns of KEEP_SNAPSHOTS. A batch that fails evicts them all, so they may already count as kept."""
    for aggregate in grown:
        aggregate.snapshot_at = aggregate.version
    return [
        [aggregate.id for aggregate in grown],
        [aggregate.version for aggregate in grown],
        [aggregate.SNAPSHOT_VERSION for aggregate in grown],
        [aggregate.state() for aggregate in grown],
    ]


def _resolve_all(calls: list[_Call[Any]]) -> None:
    for call in calls:
        call.resolve()
