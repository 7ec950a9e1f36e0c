"""ProviderMachine: what money and public numbers need to know of a machine (money, section 12.3).

A machine is identified by the hash of its persistent signing key; a connection is a session of it.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Self
from uuid import UUID

import msgspec

from domain.eventsourced import Aggregate, DomainEvent


def machine_id_of(public_key: bytes) -> str:
    """The machine's identity: SHA-256 of its raw public key, as 64 hex characters."""
    return hashlib.sha256(public_key).hexdigest()


class MachineRegistered(DomainEvent, frozen=True, kw_only=True):
    """The machine showed itself for the first time, or with other hardware or models than before.

    ``provider_key`` is the X25519 key that it came with; earnings are listed by it. Empty where version 1 did not say.
    """

    TOPIC: ClassVar[str] = "ProviderMachine.MachineRegistered"
    SCHEMA_VERSION: ClassVar[int] = 2
    machine_id: str
    provider_key: str
    hardware: dict[str, str | int]
    models: tuple[str, ...]

    def apply(self, aggregate: Any) -> None:
        aggregate.machine_id = self.machine_id
        aggregate.description = (self.hardware, self.models)


class MachineLinked(DomainEvent, frozen=True, kw_only=True):
    """From now on the machine's earnings go to this account."""

    TOPIC: ClassVar[str] = "ProviderMachine.MachineLinked"
    machine_id: str
    account_id: str

    def apply(self, aggregate: Any) -> None:
        aggregate.account_id = self.account_id


class ProviderSessionOpened(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "ProviderMachine.ProviderSessionOpened"
    machine_id: str
    session_id: str
    provider_key: str
    gateway_id: str

    def apply(self, aggregate: Any) -> None:
        aggregate.open_sessions.add(self.session_id)


class ProviderSessionClosed(DomainEvent, frozen=True, kw_only=True):
    """Counters are the machine's own, over the session."""

    TOPIC: ClassVar[str] = "ProviderMachine.ProviderSessionClosed"
    machine_id: str
    session_id: str
    requests_served: int
    tokens_generated: int
    reason: str

    def apply(self, aggregate: Any) -> None:
        aggregate.open_sessions.discard(self.session_id)


class MachineState(msgspec.Struct, frozen=True):
    """A machine's snapshot."""

    machine_id: str
    account_id: str
    open_sessions: tuple[str, ...]
    description: tuple[dict[str, str | int], tuple[str, ...]] | None


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(MachineState)


class ProviderMachine(Aggregate):
    """``open_sessions`` are the connections that no event has closed; one lost with its gateway may linger."""

    KIND = "ProviderMachine"
    SNAPSHOT_VERSION = 1

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.machine_id = ""
        self.account_id = ""
        self.open_sessions: set[str] = set()
        self.description: tuple[dict[str, str | int], tuple[str, ...]] | None = None

    def state(self) -> bytes:
        sessions = tuple(sorted(self.open_sessions))
        return _encoder.encode(MachineState(self.machine_id, self.account_id, sessions, self.description))

    def restore(self, state: bytes) -> None:
        found = _decoder.decode(state)
        self.machine_id, self.account_id, self.description = found.machine_id, found.account_id, found.description
        self.open_sessions = set(found.open_sessions)

    def copy(self) -> Self:
        twin = super().copy()
        twin.open_sessions = set(self.open_sessions)
        return twin
