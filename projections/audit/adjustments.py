"""Adjustments and closed periods, folded from their few events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from domain import events
from domain.adjusting import AdjustmentState
from domain.adjustments import Adjustment
from domain.periods import AuditPeriod, PeriodClosed
from projections.audit.instants import Connection

ADJUSTMENTS = """
SELECT originator_id, topic, state FROM events
WHERE topic IN ('Adjustment.AdjustmentProposed', 'Adjustment.AdjustmentApproved', 'Adjustment.AdjustmentRejected')
ORDER BY position
"""

PERIODS = """
SELECT originator_id, topic, state FROM events
WHERE topic IN ('AuditPeriod.PeriodLocked', 'AuditPeriod.PeriodClosed') ORDER BY position
"""


def adjustments(connection: Connection, *, status: str = "") -> list[AdjustmentState]:
    """Every adjustment, or those of one status, in the order of their proposals."""
    found: dict[UUID, Adjustment] = {}
    for originator_id, topic, state in _rows(connection, ADJUSTMENTS):
        adjustment = found.setdefault(originator_id, Adjustment(originator_id))
        events.decode(topic, bytes(state)).evolve(adjustment)
    return [AdjustmentState.of(found_one) for found_one in found.values() if status in ("", found_one.status)]


def closed_periods(connection: Connection) -> list[PeriodClosed]:
    found: dict[UUID, AuditPeriod] = {}
    for originator_id, topic, state in _rows(connection, PERIODS):
        events.decode(topic, bytes(state)).evolve(found.setdefault(originator_id, AuditPeriod(originator_id)))
    return [period.closing for period in found.values() if period.closing is not None]


def _rows(connection: Connection, statement: str) -> Sequence[tuple[Any, ...]]:
    return connection.execute(statement).fetchall()
