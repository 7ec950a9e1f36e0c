"""What the HTTP and socket code needs from the world. ``bootstrap`` supplies it; nothing here knows an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob
from domain.keys import Caller, KeyEntry, KeySettings, MadeKey
from domain.ledger import Balance, Command
from domain.requests import RequestReleased, RequestSettled
from domain.routing import Snapshot

R = TypeVar("R")


class UsageRow(NamedTuple):
    job_id: UUID
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_micro_usd: int
    settled_at: datetime
    position: int


class Ledger(Protocol):
    async def run(self, command: Command[R]) -> R: ...


class Books(Protocol):
    """The read models that show a write at once."""

    async def balance(self, account_id: str) -> Balance: ...

    async def usage(self, account_id: str, *, before_position: int, limit: int) -> Sequence[UsageRow]: ...

    async def usage_of(self, account_id: str, job_id: UUID) -> UsageRow | None:
        """One settled request of the account."""
        ...


class Credentials(Protocol):
    async def find_api_key(self, token: str) -> Caller | None: ...

    async def find_provider_token(self, token: str) -> str | None:
        """The account that the token links a machine to."""
        ...


class Keys(Protocol):
    """An account's own keys."""

    async def create(self, account_id: str, settings: KeySettings) -> MadeKey:
        """Raises Conflict when the account has as many active keys as it may have."""
        ...

    async def list_of(self, account_id: str, *, include_revoked: bool) -> Sequence[KeyEntry]: ...

    async def revoke(self, account_id: str, key_or_id: str) -> bool: ...


class ReplyClaim(Protocol):
    """The right to answer for one idempotency key. One of both methods is called."""

    async def keep(self, content: bytes) -> None: ...

    def give_up(self) -> None: ...


class Replies(Protocol):
    async def claim(
        self, credential: str, idempotency_key: str, target: str, body: bytes, gateway_id: UUID
    ) -> bytes | ReplyClaim:
        """What was kept for this key, or the claim to make it.

        Raises:
            IdempotencyConflict: the key was used with another body.
            IdempotencyInFlight: the first request is still being answered.
        """
        ...


class Jobs(Protocol):
    """The scheduler, as a gateway sees it."""

    async def send(self, job: Job) -> None:
        """Queue a job. Raises ServiceUnavailable when the scheduler's broker does not take it."""
        ...

    async def end_now(self, job: SettleJob | ReleaseJob) -> RequestSettled | RequestReleased:
        """Run an end at once, through this gateway's own writer."""
        ...


class Fleet(Protocol):
    """The fleet table. Methods that free capacity return the waiting requests that may use it now."""

    async def announce(self, snapshot: Snapshot, *, routable: bool) -> Sequence[DispatchJob]: ...

    async def withdraw(self, session_id: str) -> None: ...

    async def release(self, request_id: UUID, attempt: int) -> Sequence[DispatchJob]: ...

    async def leave_queue(self, request_id: UUID) -> None: ...

    async def offers(self, model: str | None = None) -> Sequence[Snapshot]: ...


class Channel(Protocol):
    """One attempt's sealed channel to a machine."""

    public_key: str

    def seal(self, text: bytes) -> str: ...

    def open(self, sealed: str) -> bytes:
        """Raises ValueError when the value does not authenticate."""
        ...


class Sealing(Protocol):
    def channel(self, provider_key: str) -> Channel:
        """A channel under a fresh key of ours. Raises ValueError when the provider's key is unusable."""
        ...

    def is_key(self, provider_key: str) -> bool: ...

    def verify(self, public_key: str, signature: str, message: bytes) -> None:
        """Raises ValueError when the signature does not hold."""
        ...

    def raw_key(self, public_key: str) -> bytes:
        """A signing key's 64 raw bytes. Raises ValueError when it is none."""
        ...


class Gateway(Protocol):
    """This gateway's own identity, which changes when it loses its lease."""

    @property
    def gateway_id(self) -> UUID: ...
