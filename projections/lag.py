"""How far each lagging read model is behind the log, and what keeps it."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from projections.page import Connection

LAG = """
SELECT t.name, t.position, h.position - t.position,
       coalesce(greatest(extract(epoch FROM clock_timestamp() - next.recorded_at), 0), 0)::float8,
       t.failure, t.failed_at
FROM projection_tracking t CROSS JOIN ledger_head h LEFT JOIN events next ON next.position = t.position + 1
ORDER BY t.name
"""
"""One row for each projection, in the order of Lag. It costs one look into the log for each."""


class Lag(NamedTuple):
    """``seconds`` is the age of the oldest event that was not applied; ``failure`` says why it stands, if it does."""

    name: str
    position: int
    positions: int
    seconds: float
    failure: str | None
    failed_at: datetime | None


def lag_of(connection: Connection) -> list[Lag]:
    """The lag of every projection that ever ran."""
    return [Lag(*row) for row in connection.execute(LAG)]
