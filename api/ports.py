"""What the HTTP and socket code needs from the world. ``bootstrap`` supplies it; nothing here knows an adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

from domain.batches import Batch, Line, LineError, Status, StoredFile
from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob
from domain.keys import Caller, KeyEntry, KeySettings, MadeKey
from domain.ledger import Balance, Command
from domain.protocol import InferenceRequest
from domain.relay import JobFrame
from domain.requests import RequestReleased, RequestSettled
from domain.routing import Health, Load, Observation, Snapshot

R = TypeVar("R")


class UsageRow(NamedTuple):
    """One settled request. ``cached_tokens`` are a part of the prompt's; ``unit`` is empty where only tokens are
    metered."""

    job_id: UUID
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    unit: str
    units: int
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

    @property
    def missing(self) -> Collection[str]:
        """Sessions that the table does not know any more."""
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
    @property
    def takes_sessions(self) -> bool:
        """Whether anybody can be signed in here."""
        ...

    async def find_session(self, token: str) -> Caller:
        """Whose session a token is of; somebody who is seen for the first time gets an account.

        Raises:
            AuthenticationFailed: it is not a valid session's. AccountLookupFailed: the account could not be looked up.
        """
        ...

    def find_admin(self, token: str) -> Caller | None:
        """The admin, if this is the admin key."""
        ...

    async def find_api_key(self, token: str) -> Caller | None: ...

    async def find_key_by_id(self, key_id: str) -> Caller | None:
        """The active key of an id, for work that was asked for before."""
        ...

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
        self, snapshot: Snapshot, *, routable: bool, withheld: Collection[str] = ()
    ) -> Sequence[DispatchJob]:
        """Write a machine's state at once. ``withheld`` are models that not everybody may ask it for: its owner at
        most, when it is routable."""
        ...

    def note(self, snapshot: Snapshot, *, routable: bool, withheld: Collection[str] = ()) -> None:
        """Write it with the next tick."""
        ...

    def touch(self, session_id: str) -> None:
        """A machine is there and nothing about it changed; also written with the next tick."""
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

    async def is_idle(self, model: str) -> bool:
        """Whether a machine that offers a model has nothing to do, and nobody waits for the model."""
        ...

    async def offers(self, model: str | None = None, *, own_account: str = "") -> Sequence[Snapshot]:
        """The machines that a consumer can be routed to. Those that serve their owner alone are among them for
        ``own_account``."""
        ...


class RelayedAnswer(AbstractAsyncContextManager[Any], Protocol):
    """What a machine on another gateway answers. Leaving the context early makes it stop."""

    def frames(self) -> AsyncGenerator[JobFrame, None]:
        """Raises ConnectionError when the other gateway is gone. An end without a last word: the machine is."""
        ...


class Relay(Protocol):
    """The machines on other gateways' sockets."""

    def unreachable(self) -> Mapping[str, float]:
        """Gateways that were just found out of reach, and until when (Unix seconds) they are passed over."""
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


class TransportKey(Protocol):
    """What consumers seal requests to. ``public_key`` is base64 of an X25519 key."""

    @property
    def kid(self) -> str: ...

    @property
    def public_key(self) -> str: ...


class SealedRequest(Protocol):
    """An opened request."""

    @property
    def kid(self) -> str: ...

    @property
    def body(self) -> bytes: ...

    @property
    def channel(self) -> AnswerChannel: ...


class AnswerChannel(Protocol):
    def seal(self, text: bytes) -> str:
        """Base64 that only the request's sender can open."""
        ...


class SealedRequests(Protocol):
    """What consumers seal to this coordinator."""

    def key(self) -> TransportKey:
        """The key to seal to. Raises EncryptionUnavailable."""
        ...

    async def open(self, kid: str, ephemeral_public_key: str, ciphertext: str) -> SealedRequest:
        """Open an envelope, the first time that it comes.

        Raises:
            EncryptionUnavailable: there is no key.
            KidMismatch: it is sealed to a key that is not in use.
            InvalidSealedEnvelope: the consumer's key or the ciphertext is not what it should be.
            DecryptionFailed: the box does not open, or was opened before.
        """
        ...


class Files(Protocol):
    """Files of API keys, each of which only its own key opens."""

    async def put(self, caller: Caller, credential: str, name: str, content: bytes) -> StoredFile:
        """Raises Conflict when the key has as many files as it may have."""
        ...

    async def find(self, caller: Caller, credential: str, file_id: str) -> StoredFile | None: ...

    async def list_of(
        self, caller: Caller, credential: str, *, after: str | None, limit: int, purpose: str | None
    ) -> Sequence[StoredFile]: ...

    async def content(self, caller: Caller, credential: str, file_id: str) -> bytes | None: ...

    async def delete(self, caller: Caller, file_id: str) -> bool: ...


class BatchWork(Protocol):
    """A batch in the hands of one gateway. Every change raises BatchLost when it is not in its hands any more."""

    @property
    def batch_id(self) -> UUID: ...

    @property
    def account_id(self) -> str: ...

    @property
    def key_id(self) -> str: ...

    @property
    def endpoint(self) -> str: ...

    def unlock(self) -> None:
        """Get at the lines. Raises KidMismatch or DecryptionFailed when the gateways' key is another by now."""
        ...

    async def state(self) -> tuple[Status, bool]:
        """Its status, and whether its time is over."""
        ...

    async def lines(self, state: Literal["waiting", "running"], limit: int) -> Sequence[Line]: ...

    async def begin(self, line: Line) -> int:
        """Note that a try of a line begins; returns which one it is."""
        ...

    async def put_back(self, line: Line) -> None:
        """The try came to nothing, and nothing was charged."""
        ...

    async def keep_draft(self, line: Line, draft: bytes) -> None:
        """Keep what a machine answered, before it is paid for."""
        ...

    async def finish(self, line: Line, result: bytes, *, failed: bool) -> None: ...

    async def end(self, status: Status) -> None:
        """Make the files of results, and erase all that the batch could be read with."""
        ...


class Batches(Protocol):
    async def create(
        self,
        caller: Caller,
        credential: str,
        *,
        endpoint: str,
        input_file_id: str,
        lines: Sequence[bytes],
        errors: Sequence[LineError],
        metadata: dict[str, str],
    ) -> UUID:
        """A batch that runs, or with errors one that has failed.

        Raises:
            Conflict: the key has as many unfinished batches as it may have.
            EncryptionUnavailable: this coordinator has no key to keep a batch with.
        """
        ...

    async def find(self, caller: Caller, credential: str, batch_id: UUID) -> Batch | None: ...

    async def list_of(self, caller: Caller, credential: str, *, after: UUID | None, limit: int) -> Sequence[Batch]: ...

    async def cancel(self, caller: Caller, batch_id: UUID) -> None: ...

    async def take(self, gateway_id: UUID, known: Collection[UUID], limit: int) -> Sequence[BatchWork]:
        """Batches that no living gateway works on, other than those that are ``known``."""
        ...

    async def forget_old(self) -> None: ...


class Gateway(Protocol):
    """This gateway's own identity, which changes when it loses its lease."""

    @property
    def gateway_id(self) -> UUID: ...
