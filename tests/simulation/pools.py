"""Connection pools over the tables in memory, as the product's adapters use them.

How a statement reaches the database is the business of a ``Door``: at once in the contract tests, after a while and not
always in a simulation. The statements of one transaction run as one, because the product's transactions lock what they
change.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

from tests.simulation.processes import wait_for
from tests.simulation.tables import Row, Tables

R = TypeVar("R")


class Door(Protocol):
    async def reach(self, action: Callable[[], R]) -> R:
        """Run something at the database. Raises psycopg.OperationalError when it or its answer does not get through."""
        ...


class _Rows:
    """What a statement returned, read by a thread."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = iter(rows)

    def fetchone(self) -> Row | None:
        return next(self._rows, None)

    def fetchall(self) -> list[Row]:
        return list(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return self._rows


class _AsyncRows:
    def __init__(self, rows: list[Row]) -> None:
        self._rows = _Rows(rows)

    async def fetchone(self) -> Row | None:
        return self._rows.fetchone()

    async def fetchall(self) -> list[Row]:
        return self._rows.fetchall()


class _Connection:
    def __init__(self, tables: Tables, door: Door | None) -> None:
        self._tables = tables
        self._door = door
        self._in_transaction = False
        self._arrived = False

    def execute(self, statement: str, parameters: Any = None, **_: Any) -> _Rows:
        if self._door is None or self._arrived:
            return _Rows(self._tables.execute(statement, parameters))
        rows = wait_for(self._door.reach(lambda: self._tables.execute(statement, parameters)))
        self._arrived = self._in_transaction
        return _Rows(rows)

    @contextmanager
    def pipeline(self) -> Generator[None, None, None]:
        yield

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        self._in_transaction = True
        yield
        self._in_transaction = self._arrived = False


class _AsyncConnection:
    def __init__(self, tables: Tables, door: Door | None) -> None:
        self._tables = tables
        self._door = door
        self._in_transaction = False
        self._arrived = False

    async def execute(self, statement: str, parameters: Any = None, **_: Any) -> _AsyncRows:
        if self._door is None or self._arrived:
            return _AsyncRows(self._tables.execute(statement, parameters))
        rows = await self._door.reach(lambda: self._tables.execute(statement, parameters))
        self._arrived = self._in_transaction
        return _AsyncRows(rows)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None, None]:
        self._in_transaction = True
        yield
        self._in_transaction = self._arrived = False


class MemoryPool:
    """For code that was written for threads. Without a door, statements run at once."""

    def __init__(self, tables: Tables, door: Door | None = None) -> None:
        self._tables = tables
        self._door = door

    @contextmanager
    def connection(self) -> Generator[_Connection, None, None]:
        yield _Connection(self._tables, self._door)


class AsyncMemoryPool:
    """For coroutines."""

    def __init__(self, tables: Tables, door: Door | None = None) -> None:
        self._tables = tables
        self._door = door

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[_AsyncConnection, None]:
        yield _AsyncConnection(self._tables, self._door)

    async def check(self) -> None:
        """No connection of this pool is ever stale."""
