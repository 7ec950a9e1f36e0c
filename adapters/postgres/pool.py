"""Connection pools, and the one place where a database failure becomes an error of the domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from adapters.postgres.arrays import pack_lists
from domain.errors import ServiceUnavailable

KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A server that vanished without a word is noticed within half a minute."""

_checks: set[asyncio.Task[None]] = set()

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


def _prepare(connection: psycopg.Connection[Any]) -> None:
    """Prepared statements keep their first plan: they are made so that one fits all, and planning takes longer."""
    connection.execute("SET plan_cache_mode = force_generic_plan")
    pack_lists(connection)


async def _prepare_async(connection: AsyncConnection) -> None:
    pack_lists(connection)


def open_pool(dsn: str, *, size_max: int) -> ConnectionPool[psycopg.Connection[tuple[Any, ...]]]:
    """A pool for threads; every statement is its own transaction unless one is begun."""
    return ConnectionPool(
        dsn,
        min_size=1,
        max_size=size_max,
        kwargs={"autocommit": True} | KEEPALIVE,
        configure=_prepare,
        open=True,
        timeout=10.0,
    )


def make_async_pool(dsn: str, *, size_max: int) -> AsyncConnectionPool[AsyncConnection]:
    """The same for one event loop; the caller opens it there."""
    return AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=size_max,
        kwargs={"autocommit": True} | KEEPALIVE,
        configure=_prepare_async,
        open=False,
        timeout=10.0,
    )


@contextmanager
def reading_of(
    pool: ConnectionPool[psycopg.Connection[tuple[Any, ...]]],
) -> Generator[psycopg.Connection[tuple[Any, ...]], None, None]:
    """The same for a thread.

    Raises:
        ServiceUnavailable: the database did not answer, or not in time.
    """
    try:
        with pool.connection() as connection:
            yield connection
    except psycopg.errors.QueryCanceled as error:
        raise ServiceUnavailable(
            "The answer took too long; ask for less at once, and see that the projections run."
        ) from error
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise ServiceUnavailable("The database does not answer just now; try again.") from error


@asynccontextmanager
async def connection_of(pool: AsyncConnectionPool[AsyncConnection]) -> AsyncGenerator[AsyncConnection, None]:
    """A connection whose failure is a retryable error.

    Raises:
        ServiceUnavailable: the database did not answer.
    """
    try:
        async with pool.connection() as connection:
            yield connection
    except (psycopg.Error, PoolTimeout) as error:
        # After a restart of the server every pooled connection is dead; find that out once, and not once a request.
        check = asyncio.create_task(pool.check())
        _checks.add(check)
        check.add_done_callback(_checks.discard)
        raise ServiceUnavailable("The database does not answer just now; try again.") from error
