"""AuditPeriod: a calendar month in UTC, open until it is closed (money, section 12.7).

Closing takes two steps, so that nothing slips in between: first the month is locked, which no entry with an effective
date inside of it survives, then the trial balance that can no longer change is recorded.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from domain.errors import InvalidRequest
from domain.eventsourced import Aggregate, DomainEvent

_PERIOD = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")


def period_of(moment: datetime) -> str:
    """The month that a moment belongs to, such as ``2026-05``."""
    return moment.astimezone(UTC).strftime("%Y-%m")


def end_of(period: str) -> datetime:
    """The last microsecond of a month.

    Raises:
        InvalidRequest: the text names no month.
    """
    match = _PERIOD.fullmatch(period)
    if match is None:
        raise InvalidRequest("A period is a month such as 2026-05.", param="period")
    year, month = int(match[1]), int(match[2])
    return datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) - timedelta(microseconds=1)


class PeriodLocked(DomainEvent, frozen=True, kw_only=True):
    """From here on no entry takes an effective date inside of the month."""

    TOPIC: ClassVar[str] = "AuditPeriod.PeriodLocked"
    period: str

    def apply(self, aggregate: Any) -> None:
        aggregate.locked = True


class PeriodClosed(DomainEvent, frozen=True, kw_only=True):
    """``trial_balance_sha256`` is that of the effective trial balance at the month's end, as known at ``position``."""

    TOPIC: ClassVar[str] = "AuditPeriod.PeriodClosed"
    period: str
    position: int
    trial_balance_sha256: str

    def apply(self, aggregate: Any) -> None:
        aggregate.closing = self


class AuditPeriod(Aggregate):
    KIND = "AuditPeriod"

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.locked = False
        self.closing: PeriodClosed | None = None
