"""Replays the log into read models, in lanes that run side by side.

Projections of the same aggregates share a lane, where every event is fetched and decoded once, and while one lane waits
for the database another one works. A lane has a session of its own; whoever opens it decides what the names of
the tables mean there.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Self

import psycopg

from projections.page import Connection, read_page
from projections.projection import Projection, topics_of

PAGE_EVENTS = 20_000
"""Larger than a runner's page: nobody waits for a single event, and every counter is written once a page."""

COLLECT_AFTER = 1_000_000
"""A page's events are freed when the page is done. At its usual pace the collector of cycles would look through them
many times in between, for a third of the whole time."""

PREPARE_SESSION = "SELECT set_config('TimeZone', 'UTC', false), set_config('synchronous_commit', 'off', false)"
"""Times arrive without a conversion, and no page waits for the disk: what a crash could lose is thrown away anyway, and
the commit that puts a rebuilt table in place writes all before it to the disk as well."""

OpenLane = Callable[[Connection, Sequence[Projection]], None]
"""Makes a new session ready for a lane: from then on the plain names of its tables are those to fill."""

Arrived = Callable[[Connection, Sequence[str]], None]
"""What is left to do for the tables of a lane, in its session."""


class ReplayStopped(Exception):
    """Another lane failed."""


class Replay:
    """Fresh projections, from the first event to wherever ``advance`` brings them. Use it as a context."""

    def __init__(
        self, dsn: str, projections: Iterable[Projection], open_lane: OpenLane, *, page_events: int = PAGE_EVENTS
    ) -> None:
        self._dsn = dsn
        self._open_lane = open_lane
        self._stopping = threading.Event()
        self._lanes = [_Lane(lane, page_events, self._stopping) for lane in lanes_of(projections)]
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for lane in self._lanes:
                lane.connection = stack.enter_context(psycopg.connect(self._dsn, autocommit=True))
                lane.connection.execute(PREPARE_SESSION)
                self._open_lane(lane.connection, lane.projections)
            self._pool = stack.enter_context(ThreadPoolExecutor(len(self._lanes), thread_name_prefix="replay"))
            stack.callback(self._stopping.set)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def position(self) -> int:
        """How far all of them have come."""
        return min(position for lane in self._lanes for position in lane.positions.values())

    def connection_of(self, name: str) -> Connection:
        """The session in which a projection's table is filled."""
        return next(lane.connection for lane in self._lanes if name in lane.positions)

    def advance(self, limits: Mapping[str, int], arrived: Arrived | None = None) -> None:
        """Bring each projection to its own position. A lane that is there does ``arrived`` at once.

        Raises:
            EventNotReadable: an event on the way cannot be read by this build.
        """
        with _rare_collections():
            runs = [self._pool.submit(lane.advance, limits, arrived) for lane in self._lanes]
            failures = [error for run in runs if (error := run.exception()) is not None]
        if failures:
            raise next((error for error in failures if not isinstance(error, ReplayStopped)), failures[0])


class _Lane:
    """One transaction holds one page of all projections that stand at its beginning."""

    connection: Connection

    def __init__(self, projections: Sequence[Projection], page_events: int, stopping: threading.Event) -> None:
        self.projections = projections
        self.positions = {projection.name: 0 for projection in projections}
        self._page_events = page_events
        self._stopping = stopping

    def advance(self, limits: Mapping[str, int], arrived: Arrived | None) -> None:
        try:
            while behind := {name: at for name, at in self.positions.items() if at < limits[name]}:
                if self._stopping.is_set():
                    raise ReplayStopped
                position = min(behind.values())
                names = [name for name, at in behind.items() if at == position]
                self._apply(names, position, min(position + self._page_events, *(limits[name] for name in names)))
            if arrived is not None:
                arrived(self.connection, list(self.positions))
        except BaseException:
            self._stopping.set()
            raise

    def _apply(self, names: Sequence[str], position: int, upto: int) -> None:
        projections = [projection for projection in self.projections if projection.name in names]
        with self.connection.transaction():
            page = read_page(self.connection, position, upto, topics_of(projections))
            for projection in projections:
                projection.apply(self.connection, page)
        self.positions.update(dict.fromkeys(names, upto))


def lanes_of(projections: Iterable[Projection]) -> list[list[Projection]]:
    """A lane for each kind of aggregate; a projection belongs to that of the first event that it names."""
    lanes: dict[str, list[Projection]] = {}
    for projection in projections:
        lanes.setdefault(projection.events[0].TOPIC.partition(".")[0], []).append(projection)
    return list(lanes.values())


@contextmanager
def _rare_collections() -> Generator[None, None, None]:
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
