"""What the auditor's endpoints need from the world. ``bootstrap`` supplies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from projections.audit.instants import Connection
from projections.diff import Compared


class Accesses(Protocol):
    """The record of who looked at what."""

    async def record(self, key_id: str, endpoint: str, parameters: Mapping[str, str]) -> None: ...


class Reading(Protocol):
    """Connections for questions; they are used in threads."""

    def __call__(self) -> AbstractContextManager[Connection]:
        """Raises ServiceUnavailable when the database does not answer."""
        ...


class Replayer(Protocol):
    names: Sequence[str]
    """The projections that can be replayed."""

    def replay(self, projections: Sequence[str], to_position: int | None) -> Sequence[Compared]:
        """Rebuild from nothing and compare with what is live, each at its own position or all at one. Blocking; called
        in a thread."""
        ...


class Run(Protocol):
    """A replay as it is stored."""

    @property
    def status(self) -> str: ...
    @property
    def projections(self) -> list[str]: ...
    @property
    def to_position(self) -> int: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def finished_at(self) -> datetime | None: ...
    @property
    def outcome(self) -> dict[str, Any] | None: ...


class ReplayRuns(Protocol):
    async def begin(
        self, run_id: UUID, requested_by: str, projections: Sequence[str], to_position: int, alive_seconds: float
    ) -> bool:
        """False while another run is active."""
        ...

    async def keep(self, run_id: UUID, alive_seconds: float) -> None: ...

    async def end(self, run_id: UUID, status: str, outcome: Mapping[str, Any] | None) -> None: ...

    async def find(self, run_id: UUID) -> Run | None: ...
