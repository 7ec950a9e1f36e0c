"""How a machine fared so far: its reputation, and the circuit breaker that puts a failing one aside.

Both are derived from what gateways observe, kept by machine and not by connection, and start neutral when they are
lost. Source: provider protocol, sections 11 and 13.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from domain.routing.policy import Policy

UPTIME_GAP_SECONDS_MAX = 120.0
"""A longer silence is no uptime."""

DAY_SECONDS = 86_400.0


class Health(msgspec.Struct, frozen=True):
    """``answer_ms`` sums the times from dispatch to first content over ``jobs_done``; ``put_aside_until`` is Unix
    seconds."""

    jobs_done: int = 0
    jobs_failed: int = 0
    answer_ms: float = 0.0
    challenges_passed: int = 0
    challenges_failed: int = 0
    uptime_seconds: float = 0.0
    failures_in_row: int = 0
    put_aside_until: float = 0.0


BreakerState = Literal["closed", "open", "half_open"]

ObservationKind = Literal["job_done", "job_failed", "challenge_passed", "challenge_failed", "uptime"]


class Observation(msgspec.Struct, frozen=True):
    """Something that a gateway saw. ``amount`` is milliseconds to the first content for a job that is done, seconds
    since the last heartbeat for uptime, and nothing for the others."""

    kind: ObservationKind
    at: float
    amount: float = 0.0


def observe(health: Health, seen: Observation, policy: Policy) -> Health:
    """The health after an observation."""
    change = msgspec.structs.replace
    match seen.kind:
        case "job_done":
            return change(
                health,
                jobs_done=health.jobs_done + 1,
                answer_ms=health.answer_ms + seen.amount,
                failures_in_row=0,
                put_aside_until=0.0,
            )
        case "job_failed":
            failures = health.failures_in_row + 1
            return change(
                health,
                jobs_failed=health.jobs_failed + 1,
                failures_in_row=failures,
                put_aside_until=max(health.put_aside_until, seen.at + breaker_seconds(failures, policy)),
            )
        case "challenge_passed":
            return change(health, challenges_passed=health.challenges_passed + 1)
        case "challenge_failed":
            return change(health, challenges_failed=health.challenges_failed + 1)
        case "uptime":
            credited = seen.amount if 0 <= seen.amount <= UPTIME_GAP_SECONDS_MAX else 0.0
            return change(health, uptime_seconds=health.uptime_seconds + credited)


def breaker_seconds(failures_in_row: int, policy: Policy) -> float:
    """For how long so many failures in a row put a machine aside; 0 while they are too few."""
    beyond = failures_in_row - policy.breaker_failures
    if beyond < 0:
        return 0.0
    return min(policy.breaker_seconds_max, policy.breaker_seconds * 2.0 ** min(beyond, 60))


def breaker_state(health: Health, *, now: float, policy: Policy) -> BreakerState:
    """Closed for a machine that is asked, open for one that is put aside, half open for one that waits for a probe."""
    if health.failures_in_row < policy.breaker_failures:
        return "closed"
    return "open" if now < health.put_aside_until else "half_open"


def is_put_aside(health: Health, *, now: float, requests_all: int, policy: Policy) -> bool:
    """Whether the breaker is open, or half open with its one probe under way."""
    state = breaker_state(health, now=now, policy=policy)
    return state == "open" or (state == "half_open" and requests_all > 0)


def reputation(health: Health) -> float:
    """From 0 to 1; 0.5 for a machine that nobody knows yet (provider protocol, section 11)."""
    jobs, challenges = health.jobs_done + health.jobs_failed, health.challenges_passed + health.challenges_failed
    speed = 0.5
    if health.jobs_done:
        speed = min(1.0, max(0.0, 1.0 - (health.answer_ms / health.jobs_done - 1_000.0) / 9_000.0))
    score = (
        0.4 * (health.jobs_done / jobs if jobs else 0.5)
        + 0.3 * (min(1.0, health.uptime_seconds / DAY_SECONDS) if health.uptime_seconds > 0 else 0.5)
        + 0.2 * (health.challenges_passed / challenges if challenges else 0.5)
        + 0.1 * speed
    )
    return min(1.0, max(0.0, score))
