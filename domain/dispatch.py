"""What gateways and schedulers say to each other: intents to do a job, and notices of what became of it.

They carry ids, sizes and constraints, never a prompt or an answer, because they pass through the broker.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from domain.kinds import TEXT, ModelKind
from domain.requests import JobFailure
from domain.routing import ANY_MACHINE, Constraints, Demand, Snapshot


class DispatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """Find a machine for one attempt. Tokens are routing estimates; ``deadline`` is Unix seconds.

    ``reply_to`` is the gateway that holds the prompt. ``excluded`` are sessions that failed this request or are at work
    on it; ``out_of_reach`` are gateways that did not answer that one, each with the time (Unix seconds) until when all
    of its machines are passed over. A ``hedge`` races another attempt, so it takes no slot that somebody waits for. A
    ``background`` job gets a machine that does nothing else, while nobody waits for the model, or none.
    """

    request_id: UUID
    attempt: int
    account_id: str
    model: str
    kind: ModelKind = TEXT
    size_gb: float
    prompt_tokens: int
    output_tokens: int
    excluded: tuple[str, ...] = ()
    out_of_reach: dict[str, float] = {}
    failures: tuple[JobFailure, ...] = ()
    reply_to: UUID
    deadline: float
    may_wait: bool = True
    hedge: bool = False
    constraints: Constraints = ANY_MACHINE
    background: bool = False

    def demand_at(self, now: float) -> Demand:
        """What it asks of a machine, ``now`` being Unix seconds."""
        passed_over = (gateway for gateway, until in self.out_of_reach.items() if until > now)
        return Demand(
            model=self.model,
            kind=self.kind,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            excluded=frozenset((*self.excluded, *passed_over)),
            size_gb=self.size_gb,
            constraints=self.constraints,
        )


class SettleJob(msgspec.Struct, frozen=True, kw_only=True):
    """Record a completion, and what became of the other attempts. Everything in it is what ``ledger.Settle`` takes."""

    request_id: UUID
    account_id: str
    job_id: str
    claimed_prompt_tokens: int
    claimed_completion_tokens: int
    completion_bound: int
    claimed_units: int = 0
    units_bound: int = 0
    claimed_cached_tokens: int = 0
    failures: tuple[JobFailure, ...] = ()


class ReleaseJob(msgspec.Struct, frozen=True, kw_only=True):
    """End a request without charge."""

    request_id: UUID
    account_id: str
    reason: str
    failures: tuple[JobFailure, ...] = ()


Job = DispatchJob | SettleJob | ReleaseJob

SECRET_HEADER = "X-Darkbloom-Internal"
"""By this header the coordinator's own processes recognise each other."""

NOTICES_PATH = "/internal/notices"
"""Where a gateway takes notices from schedulers in other processes."""


class Assigned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The attempt has a slot on this machine, and the log knows."""

    request_id: UUID
    attempt: int
    job_id: str
    machine: Snapshot


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """No slot is free; the request keeps its place. ``machines`` is how many connected ones offer the model to it,
    ``position`` its place in the queue with 1 for the first, ``wait_seconds`` an estimate, None when there is none."""

    request_id: UUID
    attempt: int
    machines: int
    position: int = 1
    wait_seconds: float | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The attempt will not be dispatched: ``queue_full``, ``hopeless``, ``too_large`` for the memory of every machine,
    or ``no_machine``. ``position`` is the place in the queue that it would have had, ``wait_seconds`` the estimate for
    it, None when there is none."""

    request_id: UUID
    attempt: int
    reason: str
    position: int = 1
    wait_seconds: float | None = None


Notice = Assigned | Waiting | Refused
