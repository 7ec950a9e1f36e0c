"""What the index said a moment ago, so that many requests of one kind at once read it once.

A scheduler's own claims are counted in, so requests that come together do not all go to the machine that was the
cheapest when the index was read. What others do meanwhile shows at the claim, which the database decides.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec

from domain.routing import Candidate, Demand, Load, shape_of

PAGES_MAX = 256


class Kind(NamedTuple):
    """Requests that the index gives the same answer to, or nearly: their memory differs by less than half."""

    model: str
    shape: int
    size: int
    minimum_trust: str
    gateway_id: UUID | None


def kind_of(demand: Demand, gateway_id: UUID | None) -> Kind:
    size = (demand.prompt_tokens + demand.output_tokens).bit_length()
    return Kind(demand.model, shape_of(demand), size, demand.constraints.minimum_trust, gateway_id)


class _Page(NamedTuple):
    until: float
    candidates: dict[str, Candidate]


class RecentCandidates:
    """Keeps each page of candidates for so many seconds. Several threads may use it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: dict[Kind, _Page] = {}
        self._lock = threading.Lock()

    def of(self, kind: Kind) -> list[Candidate]:
        """Empty when the index has to be read."""
        with self._lock:
            page = self._pages.get(kind)
            return list(page.candidates.values()) if page is not None and page.until > time.monotonic() else []

    def keep(self, kind: Kind, candidates: Sequence[Candidate]) -> None:
        if not self._seconds:
            return
        now = time.monotonic()
        with self._lock:
            if len(self._pages) >= PAGES_MAX:
                self._pages = {known: page for known, page in self._pages.items() if page.until > now}
            found = {candidate.snapshot.session_id: candidate for candidate in candidates}
            self._pages[kind] = _Page(now + self._seconds, found)

    def count_claim(self, session_id: str, model: str, output_tokens: int) -> None:
        """A slot of a machine was taken."""
        with self._lock:
            for kind, page in self._pages.items():
                candidate = page.candidates.get(session_id)
                if candidate is not None:
                    same = kind.model == model
                    load = candidate.load
                    busier = Load(
                        load.requests_all + 1,
                        load.requests_model + same,
                        load.output_tokens_model + (output_tokens if same else 0),
                    )
                    page.candidates[session_id] = msgspec.structs.replace(candidate, load=busier)
