"""Who is woken when slots come free: the first in the queue whom one of them can really serve.

What is free is on machines, and a request waits for a model. A slot of a machine whose engine for the model is full, or
that is somebody else's alone, or too small, is none for it, and goes to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from adapters.postgres import sql
from domain.dispatch import DispatchJob
from domain.routing import Health, Policy, Snapshot, Vacancy, whom_to_wake
from domain.routing.facts import NEUTRAL

LOOKS = (16, 10_000, 10_000, 10_000)
"""So many waiting requests are looked at. The first look is nearly always enough; others follow when it finds too few
who can be served, or when somebody else woke one of them at the same time."""

Rows = list[Sequence[Any]]
Waking = Generator[tuple[str, Any], Rows, list[DispatchJob]]
"""Statements with their parameters, in return for their rows; at the end, the jobs that were woken."""

_snapshot = msgspec.json.Decoder(Snapshot)
_health = msgspec.json.Decoder(Health)
_job = msgspec.json.Decoder(DispatchJob)


class Freed(NamedTuple):
    """Machines on which something came free, and what they offer."""

    sessions: Sequence[Any]
    models: Sequence[str]


def waking(freed: Freed, policy: Policy, gateway_id: UUID | None) -> Waking:
    """Wake whoever can have what is free on some machines, of one gateway or of all."""
    woken: list[DispatchJob] = []
    for count in LOOKS if freed.sessions else ():
        waiting = jobs_in((yield sql.WHO_WAITS, {"models": freed.models, "gateway_id": gateway_id, "count": count}))
        if not waiting:
            break
        vacancies = [_vacancy(row) for row in (yield sql.VACANCIES, (freed.sessions,))]
        served = whom_to_wake([*woken, *waiting], vacancies, policy, now=time.time())
        chosen = [one for one in served if one not in woken]
        ids, attempts = [one.request_id for one in chosen], [one.attempt for one in chosen]
        just_woken = jobs_in((yield sql.WAKE_THESE, (ids, attempts))) if chosen else []
        woken += just_woken
        all_are_seen = len(waiting) < count or len(served) == sum(one.slots for one in vacancies)
        if all_are_seen and len(just_woken) == len(chosen):
            break
    return woken


def jobs_in(rows: Iterable[Sequence[Any]]) -> list[DispatchJob]:
    return [_job.decode(row[0]) for row in rows]


def health_in(stored: bytes | None) -> Health:
    """The health of a machine as it is stored; neutral for one that has none."""
    return _health.decode(stored) if stored else NEUTRAL


def _vacancy(row: Sequence[Any]) -> Vacancy:
    snapshot, busy, health, requests = row
    return Vacancy(_snapshot.decode(snapshot), health_in(health), busy, requests or {})
