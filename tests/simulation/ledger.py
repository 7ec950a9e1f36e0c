"""The ledger in memory: the real commands, unit of work and checks, and the table of open requests.

Each process has a writer of its own on the one log, as in production. Commands that come while a commit is under way
share the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from domain.errors import LedgerUnavailable
from domain.eventsourced import Written
from domain.invariants import BatchCheck
from domain.ledger import Command
from domain.requests import RequestAdmitted, RequestReleased, RequestSettled
from tests.simulation.pools import Door
from tests.simulation.processes import wait_for
from tests.simulation.tables import OpenRequest, Tables
from tests.support.memory_ledger import MemoryLedger

R = TypeVar("R")

COMMIT_SECONDS = 0.002


class SimulatedLog:
    """The one log. ``on_commit`` sees every batch that was written, after the checks of the writer."""

    def __init__(self, tables: Tables, clock: Callable[[], float], on_commit: Callable[[Written], None]) -> None:
        self._tables = tables
        self._on_commit = on_commit
        self._check = BatchCheck()
        self.memory = MemoryLedger(clock=lambda: datetime.fromtimestamp(clock(), UTC))

    def write(self, commands: list[Command[Any]]) -> list[Any]:
        """Run commands in one transaction; returns each one's result or refusal.

        Raises:
            InvariantViolated: the batch must not be committed.
        """
        self.memory.begin()
        answers: list[Any] = []
        for command in commands:
            try:
                answers.append(self.memory.run(command))
            except Exception as refusal:
                answers.append(refusal)
        self._check.check(self.memory.pending())
        written = self.memory.commit()
        for event in written.events:
            self._follow(event)
        self._on_commit(written)
        return answers

    def _follow(self, event: Any) -> None:
        match event:
            case RequestAdmitted():
                self._tables.changes += 1
                self._tables.open_requests[UUID(event.request_id)] = OpenRequest(
                    event.account_id,
                    event.gateway_id,
                    event.model,
                    event.timestamp.timestamp(),
                    event.expires_at.timestamp(),
                )
            case RequestSettled() | RequestReleased():
                self._tables.changes += 1
                self._tables.open_requests.pop(UUID(event.request_id), None)


class SimulatedWriter:
    """A process's own writer, in the place of ``LedgerWriter``."""

    halted = False

    def __init__(self, log: SimulatedLog, door: Door) -> None:
        self._log = log
        self._door = door
        self._waiting: list[tuple[Command[Any], asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def run(self, command: Command[R]) -> R:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answer))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await answer

    def execute(self, command: Command[R], *, timeout_seconds: float | None = 60.0) -> R:
        """The same from a simulated thread."""
        return wait_for(self.run(command))

    async def _write(self) -> None:
        while self._waiting:
            await asyncio.sleep(COMMIT_SECONDS)
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._door.reach(lambda batch=batch: self._log.write([one for one, _ in batch]))
            except psycopg.OperationalError:
                answers = [LedgerUnavailable() for _ in batch]
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if waiting.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
