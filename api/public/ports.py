"""What the transparency log's answers are made from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import Range
from domain.transparency.note import VerifierKey


class PublicKey(Protocol):
    """A public key of the log; ``announcement`` is empty for the first one."""

    @property
    def key(self) -> VerifierKey: ...

    @property
    def announcement(self) -> str: ...

    @property
    def announced_at(self) -> datetime: ...

    @property
    def retired_at(self) -> datetime | None: ...


class Tree(Protocol):
    async def position_of_job(self, job_id: UUID, wallet_id: UUID) -> int | None:
        """Where a wallet paid for a job, or earned by it."""
        ...

    async def event(self, position: int, wallet_id: UUID | None = None) -> LoggedEvent | None:
        """The event at a position, of one wallet or of any aggregate."""
        ...

    async def inclusion(self, position: int, size: int) -> tuple[bytes, list[bytes]]:
        """The leaf hash at a position, and its proof in the tree of ``size`` events. Raises TreeDamaged."""
        ...

    async def roots(self, ranges: Sequence[Range]) -> list[bytes]:
        """The roots of ranges of the stored tree. Raises TreeDamaged."""
        ...


class Checkpoints(Protocol):
    async def note(self, size: int | None = None) -> str | None:
        """The newest signed checkpoint, or the one of exactly that size."""
        ...

    async def keys(self) -> Sequence[PublicKey]: ...

    async def wish(self) -> None:
        """Ask for a checkpoint now."""
        ...


class TransparencyLog(NamedTuple):
    tree: Tree
    checkpoints: Checkpoints
