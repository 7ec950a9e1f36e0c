"""What the HTTP and socket code needs from the world. ``bootstrap`` supplies it; nothing here knows an adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob
from domain.keys import Caller, KeyEntry, KeySettings, MadeKey
from domain.ledger import Balance, Command
from domain.protocol import InferenceRequest
from domain.relay import JobFrame
from domain.requests import RequestReleased, RequestSettled
from domain.routing import Health, Load, Observation, Snapshot

R = TypeVar("R")


class UsageRow(NamedTuple):
    job_id: UUID
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_micro_usd: int
    settled_at: datetime
    position: int


class MachineRecord(Protocol):
    """A machine as it was last seen. ``snapshot`` is None while it is not connected; ``loads`` and
    ``asked_at`` are by model, times are Unix seconds."""

    @property
    def machine_id(self) -> str: ...

    @property
    def account_id(self) -> str: ...

    @property
    def chip(self) -> str: ...

    @property
    def machine_model(self) -> str: ...

    @property
    def models(self) -> Sequence[str]: ...

    @property
    def last_seen_at(self) -> float: ...

    @property
    def health(self) -> Health: ...

    @property
    def snapshot(self) -> Snapshot | None: ...

    @property
    def loads(self) -> Mapping[str, Load]: ...

    @property
    def asked_at(self) -> Mapping[str, float]: ...


class Flushed(Protocol):
    @property
    def woken(self) -> Sequence[DispatchJob]: ...

    @property
    def changed(self) -> Collection[str]:
        """Machines that were put aside or let back."""
        ...


class Ledger(Protocol):
    @property
    def halted(self) -> bool:
        """Whether it stopped for good rather than break the books."""
        ...

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

    async def meet(self, snapshot: Snapshot) -> None:
        """A machine proved who it is: recall how it fared so far, and give no more work to its older connections."""
        ...

    def health_of(self, machine_id: str) -> Health: ...

    def forget(self, machine_id: str) -> None: ...

    async def announce(
        self, snapshot: Snapshot, *, routable: bool, broken: Collection[str] = ()
    ) -> Sequence[DispatchJob]:
        """Write a machine's state at once. ``broken`` are models that it cannot serve though it is routable."""
        ...

    def note(self, snapshot: Snapshot, *, routable: bool, broken: Collection[str] = ()) -> None:
        """Write it with the next tick."""
        ...

    def observe(self, machine_id: str, seen: Observation) -> None: ...

    async def tick(self) -> None:
        """Wait for the next time to flush."""
        ...

    async def flush(self) -> Flushed:
        """Write what gathered. Raises ServiceUnavailable when the database does not answer."""
        ...

    async def machines_of(self, account_id: str, machine_id: str | None = None) -> Sequence[MachineRecord]: ...

    async def withdraw(self, session_id: str) -> None: ...

    async def release(self, request_id: UUID, attempt: int) -> Sequence[DispatchJob]: ...

    async def leave_queue(self, request_id: UUID) -> None: ...

    async def offers(self, model: str | None = None) -> Sequence[Snapshot]: ...


class RelayedAnswer(AbstractAsyncContextManager[Any], Protocol):
    """What a machine on another gateway answers. Leaving the context early makes it stop."""

    def frames(self) -> AsyncGenerator[JobFrame, None]:
        """Raises ConnectionError when the other gateway is gone. An end without a last word: the machine is."""
        ...


class Relay(Protocol):
    """The machines on other gateways' sockets."""

    def unreachable(self) -> tuple[str, ...]:
        """Gateways that were just found out of reach."""
        ...

    async def start(self, machine: Snapshot, request: InferenceRequest) -> RelayedAnswer:
        """Hand a machine a sealed request. Raises ConnectionError when it or its gateway is gone."""
        ...

    async def cancel(self, machine: Snapshot, job_id: str) -> None:
        """Tell a machine to stop; its last word still comes. Raises ConnectionError when it cannot be told."""
        ...

    async def violated(self, machine: Snapshot, what: str) -> None:
        """Tell a machine's gateway that it broke the protocol. Raises ConnectionError when it cannot be told."""
        ...


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
