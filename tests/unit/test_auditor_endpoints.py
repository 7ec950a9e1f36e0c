"""Replays, whose work others do, and exports whose reader leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from api import errors
from api.auditors import desk as desks
from api.auditors import exports, replays
from api.auditors.desk import PREFIX, Desk
from api.auditors.routes import ROUTERS
from api.identity.doorkeeper import Doorkeeper
from domain.keys import ROLES, Caller, KeySettings, default_scopes
from projections.audit.instants import AsOf, Stretch
from projections.diff import Compared

NOW = datetime(2026, 5, 1, tzinfo=UTC)


CALLERS: Mapping[str, Caller] = {
    role: Caller("acct", f"key_{role}", KeySettings(role=role, scopes=default_scopes(role))) for role in ROLES
}


class Keys:
    async def find_api_key(self, token: str) -> Caller | None:
        return CALLERS.get(token)


class Accesses:
    def __init__(self) -> None:
        self.noted: list[tuple[str, str, dict[str, str]]] = []

    async def record(self, key_id: str, endpoint: str, parameters: Mapping[str, str]) -> None:
        self.noted.append((key_id, endpoint, dict(parameters)))


class Runs:
    def __init__(self) -> None:
        self.runs: dict[UUID, SimpleNamespace] = {}

    async def begin(
        self, run_id: UUID, requested_by: str, projections: Sequence[str], to_position: int, alive_seconds: float
    ) -> bool:
        if any(run.status == "running" for run in self.runs.values()):
            return False
        self.runs[run_id] = SimpleNamespace(
            status="running",
            projections=list(projections),
            to_position=to_position,
            started_at=NOW,
            finished_at=None,
            outcome=None,
        )
        return True

    async def keep(self, run_id: UUID, alive_seconds: float) -> None:
        raise AssertionError("no test runs that long")

    async def end(self, run_id: UUID, status: str, outcome: Mapping[str, Any] | None) -> None:
        run = self.runs[run_id]
        run.status, run.outcome, run.finished_at = status, outcome, NOW

    async def find(self, run_id: UUID) -> Any:
        return self.runs.get(run_id)


class Replays:
    """Waits until it is let go."""

    names = ("journal_lines", "earnings")

    def __init__(self) -> None:
        self.go = threading.Event()
        self.fails = False
        self.asked: list[tuple[tuple[str, ...], int | None]] = []

    def replay(self, projections: Sequence[str], to_position: int | None) -> list[Compared]:
        self.asked.append((tuple(projections), to_position))
        assert self.go.wait(30)
        if self.fails:
            raise OSError("the disk is full")
        return [Compared("journal_lines", 7, 2, "aa", "aa", identical=True, first_difference=None)]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk over a log of nine events that nobody has to store."""

    @contextmanager
    def nothing(*_: Any, **__: Any) -> Generator[Any, None, None]:
        yield SimpleNamespace(execute=lambda *_: None)

    newest = AsOf(9, NOW, final=False)
    monkeypatch.setattr(desks, "snapshot", nothing)
    monkeypatch.setattr(exports, "snapshot", nothing)
    monkeypatch.setattr(exports, "between", lambda *_: Stretch(AsOf(0, NOW, final=True), newest))
    monkeypatch.setattr(replays, "at_head", lambda _: newest)
    return Desk(
        credentials=Doorkeeper(Keys()),  # type: ignore[arg-type]
        accesses=Accesses(),
        reading=nothing,
        ledger=None,  # type: ignore[arg-type]
        runs=Runs(),
        replayer=Replays(),
    )


@pytest.fixture
async def auditor(desk: Desk) -> AsyncGenerator[httpx.AsyncClient, None]:
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.state.audit = desk
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": "Bearer auditor"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client
    for task in list(desk.background):
        await task


async def finished(auditor: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = (await auditor.get(f"{PREFIX}/replay/{run_id}")).json()
        if found["status"] != "running":
            return found
        await asyncio.sleep(0.01)


class TestReplays:
    async def test_one_replay_runs_at_a_time_and_its_outcome_stays(
        self, desk: Desk, auditor: httpx.AsyncClient
    ) -> None:
        started = await auditor.post(f"{PREFIX}/replay")
        assert started.status_code == 202
        run_id = started.json()["run_id"]
        running = (await auditor.get(f"{PREFIX}/replay/{run_id}")).json()
        assert (running["status"], running["events"], running["to_position"]) == ("running", None, 9)

        second = await auditor.post(f"{PREFIX}/replay")
        assert (second.status_code, second.json()["error"]["type"]) == (409, "conflict")

        desk.replayer.go.set()  # type: ignore[attr-defined]
        found = await finished(auditor, run_id)
        assert (found["status"], found["events"], found["seconds"]) == ("finished", 7, 0.0)
        assert found["projections"][0]["identical"] is True
        assert (await auditor.post(f"{PREFIX}/replay")).status_code == 202

    async def test_a_replay_that_fails_says_so(self, desk: Desk, auditor: httpx.AsyncClient) -> None:
        desk.replayer.fails = True  # type: ignore[attr-defined]
        desk.replayer.go.set()  # type: ignore[attr-defined]
        started = await auditor.post(f"{PREFIX}/replay", json={"projections": ["earnings"]})
        found = await finished(auditor, started.json()["run_id"])
        assert found["status"] == "failed"
        assert found["projections"] == [{"name": "earnings"}]
        assert desk.replayer.asked == [(("earnings",), None)]  # type: ignore[attr-defined]

    async def test_an_unknown_projection_is_refused(self, auditor: httpx.AsyncClient) -> None:
        refused = await auditor.post(f"{PREFIX}/replay", json={"projections": ["secrets"]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "projections")

    async def test_an_unknown_run_is_not_found(self, auditor: httpx.AsyncClient) -> None:
        assert (await auditor.get(f"{PREFIX}/replay/{uuid4()}")).status_code == 404


class TestExports:
    async def test_a_third_export_at_a_time_is_refused(self, desk: Desk, auditor: httpx.AsyncClient) -> None:
        async with desk.exports, desk.exports:
            refused = await auditor.get(f"{PREFIX}/export")
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)

    async def test_a_reader_who_leaves_gives_the_place_and_the_connection_back(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = threading.Event()

        def endless(*_: Any, **__: Any) -> Generator[bytes, None, None]:
            try:
                while True:
                    yield b"line\n"
            finally:
                closed.set()

        monkeypatch.setattr(exports.export, "export", endless)
        stretch = Stretch(AsOf(0, NOW, final=True), AsOf(9, NOW, final=False))
        stream = exports._stream(desk, stretch, "entries", "jsonl")
        has_read = asyncio.Event()
        reading = asyncio.create_task(_read_forever(stream, has_read))
        await has_read.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await stream.aclose()

        assert closed.is_set()
        assert not desk.exports.locked()


async def _read_forever(stream: AsyncGenerator[bytes, None], has_read: asyncio.Event) -> None:
    async for _ in stream:
        has_read.set()


class TestTheDesk:
    async def test_a_refused_key_is_told_why_and_leaves_no_note(self, desk: Desk, auditor: httpx.AsyncClient) -> None:
        headers = {"Authorization": "Bearer consumer"}
        refused = await auditor.get(f"{PREFIX}/holds", headers=headers)
        assert (refused.status_code, "--role auditor" in refused.json()["error"]["message"]) == (403, True)
        assert desk._accesses.noted == []  # type: ignore[attr-defined]

    async def test_a_call_is_noted_before_its_parameters_are_judged(
        self, desk: Desk, auditor: httpx.AsyncClient
    ) -> None:
        assert (await auditor.get(f"{PREFIX}/holds?limit=lots&token=s3cret")).status_code == 400
        assert desk._accesses.noted == [("key_auditor", f"GET {PREFIX}/holds", {"limit": "lots"})]  # type: ignore[attr-defined]
