"""Waiting for a condition: bounded, and never for a time that is merely hoped to be long enough."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from adapters.postgres import sql

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

SECONDS_MAX = 30.0
LOOK_EVERY_SECONDS = 0.01


def until(look: Callable[[], T], what: str) -> T:
    """Look again and again until there is something true to see."""
    deadline = time.monotonic() + SECONDS_MAX
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(LOOK_EVERY_SECONDS)
    return found


def within(seconds: float, look: Callable[[], object]) -> bool:
    """Whether something comes true in time, for what one order of events has and another lacks."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY_SECONDS)
    return True


async def until_in_loop(look: Callable[[], T], what: str) -> T:
    """The same in a coroutine, while its loop goes on."""
    deadline = time.monotonic() + SECONDS_MAX
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    return found


def sessions_waiting_for_a_lock(look: Connection) -> int:
    row = look.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def until_sessions_wait(look: Connection, count: int) -> None:
    """Until so many sessions on this database stand still before somebody's lock."""
    until(lambda: sessions_waiting_for_a_lock(look) >= count, f"{count} sessions wait for a lock")


def terminate_sessions(look: Connection, condition: str = "true") -> int:
    """Kill the other sessions on this database for which a condition on pg_stat_activity holds; how many they were."""
    killed = look.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
    ).fetchall()
    return len(killed)


@contextmanager
def head_locked(url: str) -> Generator[Connection, None, None]:
    """Nobody can append to the log while this lasts."""
    with psycopg.connect(url) as holder:
        holder.execute(sql.LOCK_HEAD)
        yield holder
        holder.rollback()


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Start something that may block; its result, or what it raised, is in the future."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done
