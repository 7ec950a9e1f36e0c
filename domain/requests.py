"""InferenceRequest: what a consumer sent, from admission to its one end (money, section 12.3).

It holds sizes, quotes and ids, never a prompt. The jobs inside are the attempts to serve it.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, Self
from uuid import UUID, uuid5

import msgspec

from domain.eventsourced import Aggregate, DomainEvent
from domain.pricing import Quote


@lru_cache(maxsize=16_384)
def job_id_of(request_id: UUID, attempt: int) -> UUID:
    """The id of one attempt: the same attempt always has the same one."""
    return uuid5(request_id, str(attempt))


class JobFailure(msgspec.Struct, frozen=True):
    """Why an attempt ended without an answer. ``reason`` is one of a closed vocabulary, never a provider's text."""

    job_id: str
    reason: str
    status_code: int


class RequestAdmitted(DomainEvent, frozen=True, kw_only=True):
    """``prompt_bound`` and ``output_bound`` are the most tokens that can be charged, ``units_bound`` the most of the
    quote's unit; ``reserved`` is their price."""

    TOPIC: ClassVar[str] = "InferenceRequest.RequestAdmitted"
    SCHEMA_VERSION: ClassVar[int] = 3
    request_id: str
    account_id: str
    key_id: str
    gateway_id: str
    model: str
    prompt_estimate: int
    prompt_bound: int
    output_bound: int
    units_bound: int
    reserved: int
    quote: Quote
    self_route: bool
    expires_at: datetime

    def apply(self, aggregate: Any) -> None:
        aggregate.admission = self


class JobDispatched(DomainEvent, frozen=True, kw_only=True):
    """``provider_key`` is the X25519 key that the attempt is sealed to."""

    TOPIC: ClassVar[str] = "InferenceRequest.JobDispatched"
    SCHEMA_VERSION: ClassVar[int] = 3
    job_id: str
    attempt: int
    provider_id: str
    machine_id: str
    provider_key: str
    provider_account_id: str
    quote: Quote

    def apply(self, aggregate: Any) -> None:
        aggregate.jobs[self.job_id] = self


class JobFailed(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "InferenceRequest.JobFailed"
    job_id: str
    reason: str
    status_code: int

    def apply(self, aggregate: Any) -> None:
        aggregate.failed.add(self.job_id)


class JobCompleted(DomainEvent, frozen=True, kw_only=True):
    """The usage that is charged; ``cached_tokens`` are those of the prompt that the machine remembered. No hash of the
    answer is kept: whoever guesses an answer could confirm it."""

    TOPIC: ClassVar[str] = "InferenceRequest.JobCompleted"
    SCHEMA_VERSION: ClassVar[int] = 3
    job_id: str
    prompt_tokens: int
    completion_tokens: int
    units: int
    cached_tokens: int


class UsageClaimClamped(DomainEvent, frozen=True, kw_only=True):
    """The machine claimed more than what passed can hold. The bounds were charged; of the prompt tokens that are
    charged no more than all can have been remembered."""

    TOPIC: ClassVar[str] = "InferenceRequest.UsageClaimClamped"
    SCHEMA_VERSION: ClassVar[int] = 3
    job_id: str
    machine_id: str
    claimed_prompt_tokens: int
    claimed_completion_tokens: int
    claimed_units: int
    claimed_cached_tokens: int
    prompt_bound: int
    completion_bound: int
    units_bound: int


class RequestSettled(DomainEvent, frozen=True, kw_only=True):
    """The end that costs something. ``raw_cost`` is the quote's price, ``cost`` what was captured. ``units`` is the
    charged amount of ``unit``, which is empty when only tokens are metered; ``cached_tokens`` are those of the prompt
    that were charged as remembered."""

    TOPIC: ClassVar[str] = "InferenceRequest.RequestSettled"
    SCHEMA_VERSION: ClassVar[int] = 3
    request_id: str
    account_id: str
    model: str
    job_id: str
    machine_id: str
    provider_key: str
    provider_account_id: str
    prompt_tokens: int
    completion_tokens: int
    unit: str
    units: int
    cached_tokens: int
    reserved: int
    raw_cost: int
    cost: int
    clamped: bool
    fee_percent: int
    fee: int
    provider_amount: int
    referral_percent: int
    referral_amount: int
    referrer_account: str
    platform_amount: int
    free: bool

    def apply(self, aggregate: Any) -> None:
        aggregate.end = self


class RequestReleased(DomainEvent, frozen=True, kw_only=True):
    """The end that costs nothing. ``reason`` is rejected, cancelled, failed, expired or no_terminal."""

    TOPIC: ClassVar[str] = "InferenceRequest.RequestReleased"
    request_id: str
    account_id: str
    reason: str

    def apply(self, aggregate: Any) -> None:
        aggregate.end = self


class InferenceRequest(Aggregate):
    KIND = "InferenceRequest"

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.admission: RequestAdmitted | None = None
        self.jobs: dict[str, JobDispatched] = {}
        self.failed: set[str] = set()
        self.end: RequestSettled | RequestReleased | None = None

    def copy(self) -> Self:
        twin = super().copy()
        twin.jobs = dict(self.jobs)
        twin.failed = set(self.failed)
        return twin
