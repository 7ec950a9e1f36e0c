"""Replays as rows: one at a time, and one whose process died does not stand in the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import uuid4

import pytest

from adapters.postgres.audit import StoredAccesses, StoredReplayRuns
from adapters.postgres.pool import make_async_pool
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
async def runs(ledger: str) -> AsyncGenerator[StoredReplayRuns, None]:
    async with make_async_pool(ledger, size_max=2) as pool:
        yield StoredReplayRuns(pool)


async def test_a_second_run_waits_for_the_end_of_the_first(runs: StoredReplayRuns) -> None:
    first, second = uuid4(), uuid4()
    assert await runs.begin(first, "key_1", ["journal_lines"], 7, 30)
    assert not await runs.begin(second, "key_1", ["journal_lines"], 7, 30)
    assert await runs.find(second) is None

    await runs.end(first, "finished", {"events": 7, "projections": []})
    assert await runs.begin(second, "key_1", ["journal_lines"], 7, 30)

    found = await runs.find(first)
    assert found is not None
    assert (found.status, found.projections, found.to_position) == ("finished", ["journal_lines"], 7)
    assert found.outcome == {"events": 7, "projections": []}
    assert found.finished_at is not None


async def test_a_run_whose_process_died_is_interrupted_and_makes_room(runs: StoredReplayRuns, look: Connection) -> None:
    dead, next_one = uuid4(), uuid4()
    assert await runs.begin(dead, "key_1", ["journal_lines"], 7, 30)
    look.execute("UPDATE replay_runs SET alive_until = now() - interval '1 second'")
    found = await runs.find(dead)
    assert found is not None
    assert found.status == "interrupted"

    assert await runs.begin(next_one, "key_1", ["journal_lines"], 7, 30)
    await runs.end(dead, "finished", {"events": 7})
    found = await runs.find(dead)
    assert found is not None
    assert (found.status, found.outcome) == ("interrupted", None)


async def test_a_run_that_is_kept_alive_stays_active(runs: StoredReplayRuns, look: Connection) -> None:
    run_id = uuid4()
    assert await runs.begin(run_id, "key_1", ["journal_lines"], 7, 0.0)
    await runs.keep(run_id, 30)
    assert not await runs.begin(uuid4(), "key_1", [], 7, 30)


async def test_an_access_is_noted_with_the_time_of_the_database(ledger: str, look: Connection) -> None:
    async with make_async_pool(ledger, size_max=1) as pool:
        await StoredAccesses(pool).record("key_1", "GET /x", {"at": "2026"})
    assert look.execute(
        "SELECT key_id, endpoint, parameters, accessed_at > now() - interval '1 minute' FROM audit_accesses"
    ).fetchall() == [("key_1", "GET /x", {"at": "2026"}, True)]
