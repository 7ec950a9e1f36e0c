"""How fast the machine itself is, in the same run: what a figure in milliseconds has to be read beside."""

from __future__ import annotations

import statistics
import time

import psycopg

COMMITS = 100
ROUNDS = 5


def yardsticks(dsn: str) -> dict[str, float]:
    """``durable_commit_p50_ms``: half of the commits of one row took at most this. ``million_loops_ms``: a core took
    this for a million rounds of an empty Python loop, at best."""
    return {"durable_commit_p50_ms": round(_durable_commit_ms(dsn), 2), "million_loops_ms": round(_loops_ms(), 1)}


def _durable_commit_ms(dsn: str) -> float:
    took: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE yardstick (n int)")
        for n in range(COMMITS):
            began = time.perf_counter()
            connection.execute("INSERT INTO yardstick VALUES (%s)", (n,), prepare=True)
            took.append((time.perf_counter() - began) * 1000)
        connection.execute("DROP TABLE yardstick")
    return statistics.median(took)


def _loops_ms() -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(1_000_000):
            pass
        best = min(best, (time.perf_counter() - began) * 1000)
    return best
