"""What the auditor's endpoints need from the world. ``bootstrap`` supplies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec

from projections.audit.instants import Connection


class Accesses(Protocol):
    """The record of who looked at what."""

    async def record(self, key_id: str, endpoint: str, parameters: Mapping[str, str]) -> None: ...


class Reading(Protocol):
    """Connections for questions; they are used in threads."""

    def __call__(self) -> AbstractContextManager[Connection]:
        """Raises ServiceUnavailable when the database does not answer."""
        ...


class Roots(Protocol):
    """The Merkle tree over the log. Blocking; called in a thread."""

    def root_at(self, size: int) -> str | None:
        """The root over the first ``size`` events in hex, or None when the tree has not got that far."""
        ...


class SignedHead(msgspec.Struct, frozen=True, kw_only=True):
    """The newest checkpoint; the signature covers what the page on checkpoints says."""

    position: int
    chain_hash: str
    signed_at: datetime
    signature: str
    key_id: str
    public_key: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the stored events of a range still give the leaves that the tree was built from."""

    ok: bool
    from_position: int = msgspec.field(name="from")
    to_position: int = msgspec.field(name="to")
    events: int
    head: str
    first_bad_position: int | None


class Proofs(Protocol):
    """Blocking; called in a thread."""

    def head(self) -> SignedHead | None:
        """None before the first checkpoint."""
        ...

    def verify(self, from_position: int, to_position: int) -> Verification: ...


class ReplayedProjection(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    rows: int
    live_sha256: str
    replayed_sha256: str
    identical: bool
    first_difference: str | None


class ReplayOutcome(msgspec.Struct, frozen=True, kw_only=True):
    events: int
    projections: list[ReplayedProjection]


class Replayer(Protocol):
    names: Sequence[str]
    """The projections that can be replayed."""

    def replay(self, projections: Sequence[str], to_position: int) -> ReplayOutcome:
        """Rebuild from nothing and compare with what is live. Blocking; called in a thread."""
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
