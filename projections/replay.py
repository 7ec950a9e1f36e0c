"""Replays the log into read models: one session reads, and lanes write side by side.

Every event is fetched and decoded once. Projections of the same aggregates share a lane, and while one lane waits for
the database another one works, or the next page is read. A lane has a session of its own; whoever opens it decides what
the names of the tables mean there.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Self

import psycopg

from projections.page import Connection, Page, read_page
from projections.projection import Projection, topics_of

PAGE_EVENTS = 20_000
"""Larger than a runner's page: nobody waits for a single event, and every counter is written once a page."""

PAGES_AHEAD = 2
"""How many pages are in memory beside the one that is read, so that a lane may be a little slower or faster."""

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


class Replay:
    """Fresh projections, from the first event to wherever ``advance`` brings them. Use it as a context.

    After a failure it cannot go on.
    """

    def __init__(
        self, dsn: str, projections: Iterable[Projection], open_lane: OpenLane, *, page_events: int = PAGE_EVENTS
    ) -> None:
        self._dsn = dsn
        self._open_lane = open_lane
        self._page_events = page_events
        self._lanes = [_Lane(lane) for lane in lanes_of(projections)]
        self._positions = {name: 0 for lane in self._lanes for name in lane.projections}
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._reader = stack.enter_context(_session(self._dsn))
            for lane in self._lanes:
                lane.connection = stack.enter_context(_session(self._dsn))
                self._open_lane(lane.connection, list(lane.projections.values()))
                stack.callback(lane.thread.shutdown, cancel_futures=True)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def position(self) -> int:
        """How far all of them have come."""
        return min(self._positions.values())

    def connection_of(self, name: str) -> Connection:
        """The session in which a projection's table is filled."""
        return next(lane.connection for lane in self._lanes if name in lane.projections)

    def advance(self, limits: Mapping[str, int], arrived: Arrived | None = None) -> None:
        """Bring each projection to its own position. A lane that is there does ``arrived`` at once.

        Raises:
            EventNotReadable: an event on the way cannot be read by this build.
        """
        under_way: deque[list[Future[None]]] = deque()
        with _rare_collections():
            for names, page in self._pages(limits):
                under_way.append([lane.thread.submit(lane.apply, names, page) for lane in self._lanes])
                if len(under_way) > PAGES_AHEAD:
                    _wait(under_way.popleft())
            if arrived is not None:
                under_way.append([lane.thread.submit(lane.arrive, arrived) for lane in self._lanes])
            while under_way:
                _wait(under_way.popleft())

    def _pages(self, limits: Mapping[str, int]) -> Generator[tuple[list[str], Page], None, None]:
        """Each page, decoded, with the projections that stand at its beginning; those furthest behind come first."""
        while behind := {name: at for name, at in self._positions.items() if at < limits[name]}:
            position = min(behind.values())
            names = [name for name, at in behind.items() if at == position]
            upto = min(position + self._page_events, *(limits[name] for name in names))
            projections = [lane.projections[name] for lane in self._lanes for name in names if name in lane.projections]
            page = read_page(self._reader, position, upto, topics_of(projections))
            page.decode()
            yield names, page
            self._positions.update(dict.fromkeys(names, upto))


class _Lane:
    """One thread on one session; one transaction holds one page."""

    connection: Connection

    def __init__(self, projections: Iterable[Projection]) -> None:
        self.projections = {projection.name: projection for projection in projections}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="replay")

    def apply(self, names: Sequence[str], page: Page) -> None:
        with self.connection.transaction():
            for name in names:
                if name in self.projections:
                    self.projections[name].apply(self.connection, page)

    def arrive(self, arrived: Arrived) -> None:
        arrived(self.connection, list(self.projections))


def lanes_of(projections: Iterable[Projection]) -> list[list[Projection]]:
    """A lane for each kind of aggregate; a projection belongs to that of the first event that it names."""
    lanes: dict[str, list[Projection]] = {}
    for projection in projections:
        lanes.setdefault(projection.events[0].TOPIC.partition(".")[0], []).append(projection)
    return list(lanes.values())


def _session(dsn: str) -> Connection:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(PREPARE_SESSION)
    return connection


def _wait(runs: Iterable[Future[None]]) -> None:
    for run in runs:
        run.result()


@contextmanager
def _rare_collections() -> Generator[None, None, None]:
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
