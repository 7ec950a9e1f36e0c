"""The commands that close a period: lock it, then record its trial balance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from domain.errors import Conflict
from domain.eventsourced import Ref, ref
from domain.ledger import Operation, Unit
from domain.periods import AuditPeriod, PeriodClosed, PeriodLocked, end_of

SETTLING_SECONDS = 120
"""How long after a period's end it can be closed: by then everything that began in it is recorded."""


class LockPeriod(Operation[PeriodClosed | None], frozen=True, kw_only=True):
    """Refuse entries with an effective date in the period from now on. Returns its closing, if it is closed already.

    Raises:
        InvalidRequest: not a month. Conflict: the month is not over.
    """

    period: str

    def needs(self) -> Sequence[Ref]:
        return (ref(AuditPeriod, self.period),)

    def decide(self, unit: Unit) -> PeriodClosed | None:
        ready = end_of(self.period) + timedelta(seconds=SETTLING_SECONDS)
        if unit.now <= ready:
            raise Conflict(f"The period {self.period} is not over; it can be closed after {ready:%Y-%m-%dT%H:%M:%SZ}.")
        period = unit.get(AuditPeriod, self.period)
        if not period.locked:
            unit.record(period, PeriodLocked, period=self.period)
        return period.closing


class ClosePeriod(Operation[PeriodClosed], frozen=True, kw_only=True):
    """Record the trial balance of a locked period. Closing it again returns the first closing.

    Raises:
        Conflict: the period is not locked.
    """

    period: str
    position: int
    trial_balance_sha256: str

    def needs(self) -> Sequence[Ref]:
        return (ref(AuditPeriod, self.period),)

    def decide(self, unit: Unit) -> PeriodClosed:
        period = unit.get(AuditPeriod, self.period)
        if period.closing is None:
            if not period.locked:
                raise Conflict(f"The period {self.period} must be locked before it can be closed.")
            unit.record(
                period,
                PeriodClosed,
                period=self.period,
                position=self.position,
                trial_balance_sha256=self.trial_balance_sha256,
            )
        return cast("PeriodClosed", period.closing)
