"""Many seeds, in as many processes as there are cores."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.market import Outcome, run

CHUNK = 10


class Total(NamedTuple):
    """What a campaign came to; ``digest`` is the same for the same seeds."""

    seeds: int
    requests: int
    answered: int
    hedges: int
    events: int
    virtual_hours: float
    faults: dict[str, int]
    digest: str


def outcomes(seeds: Iterable[int]) -> Iterator[Outcome]:
    """The outcome of each seed, in their order."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, seeds, chunksize=CHUNK)


def total_of(done: Iterable[Outcome]) -> Total:
    digest, faults = hashlib.sha256(), Counter[str]()
    seeds = requests = answered = hedges = events = 0
    seconds = 0.0
    for one in done:
        digest.update(one.digest.encode())
        faults.update(one.fault_kinds)
        seeds, requests, answered = seeds + 1, requests + one.requests, answered + one.answered
        hedges, events, seconds = hedges + one.hedges, events + one.events, seconds + one.virtual_seconds
    return Total(
        seeds, requests, answered, hedges, events, seconds / 3_600, dict(sorted(faults.items())), digest.hexdigest()
    )


def report_of(one: Outcome) -> str:
    """What to know of a seed that broke something."""
    return "\n".join(
        (
            f"seed {one.seed}: {one.broken}",
            f"faults: {', '.join(one.fault_kinds) or 'none'}; trace {one.digest}",
            *one.last_lines,
            f"replay it with: make simulate SEED={one.seed}",
        )
    )
