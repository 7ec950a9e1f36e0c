"""KeyBudget: what one API key may spend, in all or in a period, exactly (money, section 13: per-key spend caps).

A key without a limit has none of this. For a key with one, a request's worst case is held here as it is in the wallet,
so that requests that run at once cannot exceed the limit together. What settles counts in the period in which it
settles; what is held always counts.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar
from uuid import UUID

import msgspec

from domain.errors import InvariantViolated, KeyLimitReached
from domain.eventsourced import Aggregate, DomainEvent

Reset = Literal["none", "daily", "weekly", "monthly"]
"""When a limit begins anew: never, at UTC midnight, on Monday, on the 1st."""

A = TypeVar("A", bound=Aggregate)


class KeyLimit(msgspec.Struct, frozen=True):
    """The most that a key may spend in one period, in micro-USD."""

    limit_micro_usd: int
    reset: Reset


class Unit(Protocol):
    @property
    def now(self) -> datetime: ...

    def get(self, kind: type[A], key: str) -> A: ...

    def record(self, aggregate: Aggregate, event: type[DomainEvent], **payload: Any) -> None: ...


def period_of(moment: datetime, reset: str) -> str:
    """The first day of the period that a moment (in UTC) falls into; empty for a limit that never begins anew."""
    day = moment.date()
    match reset:
        case "none":
            return ""
        case "daily":
            pass
        case "weekly":
            day -= timedelta(days=day.weekday())
        case "monthly":
            day = day.replace(day=1)
        case _:
            raise InvariantViolated(f"no spend limit begins anew {reset}")
    return day.isoformat()


class KeySpendHeld(DomainEvent, frozen=True, kw_only=True):
    """``limit`` and ``reset`` are the key's own at that moment."""

    TOPIC: ClassVar[str] = "KeyBudget.KeySpendHeld"
    key_id: str
    request_id: str
    amount: int
    limit: int
    reset: str
    period: str

    def apply(self, aggregate: Any) -> None:
        aggregate.begin(self.period)
        aggregate.key_id, aggregate.reset = self.key_id, self.reset
        aggregate.holds[self.request_id] = self.amount


class KeySpendCaptured(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "KeyBudget.KeySpendCaptured"
    key_id: str
    request_id: str
    amount: int
    period: str

    def apply(self, aggregate: Any) -> None:
        aggregate.begin(self.period)
        del aggregate.holds[self.request_id]
        aggregate.spent += self.amount


class KeySpendReleased(DomainEvent, frozen=True, kw_only=True):
    TOPIC: ClassVar[str] = "KeyBudget.KeySpendReleased"
    key_id: str
    request_id: str

    def apply(self, aggregate: Any) -> None:
        del aggregate.holds[self.request_id]


class KeyBudgetState(msgspec.Struct, frozen=True):
    """A key budget's snapshot."""

    key_id: str
    period: str
    reset: str
    spent: int
    holds: dict[str, int]


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(KeyBudgetState)


class KeyBudget(Aggregate):
    """Amounts are micro-USD; ``spent`` is of ``period``, ``holds`` maps each open request to its worst case."""

    KIND = "KeyBudget"
    SNAPSHOT_VERSION = 1

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.key_id = ""
        self.period = ""
        self.reset = "none"
        self.spent = 0
        self.holds: dict[str, int] = {}

    def copy(self) -> Self:
        twin = super().copy()
        twin.holds = dict(self.holds)
        return twin

    def state(self) -> bytes:
        return _encoder.encode(KeyBudgetState(self.key_id, self.period, self.reset, self.spent, self.holds))

    def restore(self, state: bytes) -> None:
        found = _decoder.decode(state)
        self.key_id, self.period, self.reset = found.key_id, found.period, found.reset
        self.spent, self.holds = found.spent, found.holds

    def begin(self, period: str) -> None:
        """Let a new period begin, if this one is new."""
        if period != self.period:
            self.period, self.spent = period, 0

    def spent_in(self, period: str) -> int:
        return self.spent if period == self.period else 0

    @property
    def held(self) -> int:
        return sum(self.holds.values())

    def check(self) -> None:
        if self.spent < 0 or any(amount < 0 for amount in self.holds.values()):
            raise InvariantViolated(f"key budget {self.id}: an amount is below zero")


def hold(unit: Unit, key_id: str, request_id: str, amount: int, limit: KeyLimit) -> None:
    """Hold a request's worst case against its key's limit.

    Raises:
        KeyLimitReached: the limit does not cover it beside what is spent and held. Nothing is recorded.
    """
    budget = unit.get(KeyBudget, key_id)
    period = period_of(unit.now, limit.reset)
    if budget.spent_in(period) + budget.held + amount > limit.limit_micro_usd:
        raise KeyLimitReached
    unit.record(
        budget,
        KeySpendHeld,
        key_id=key_id,
        request_id=request_id,
        amount=amount,
        limit=limit.limit_micro_usd,
        reset=limit.reset,
        period=period,
    )


def capture(unit: Unit, budget: KeyBudget, request_id: str, amount: int) -> None:
    """Count what a request cost, if its key had a limit when it was admitted."""
    if request_id not in budget.holds:
        return
    if amount > budget.holds[request_id]:
        raise InvariantViolated(f"request {request_id} costs more than its key's budget holds for it")
    period = period_of(unit.now, budget.reset)
    unit.record(budget, KeySpendCaptured, key_id=budget.key_id, request_id=request_id, amount=amount, period=period)


def release(unit: Unit, budget: KeyBudget, request_id: str) -> None:
    """Give back what was held for a request that cost nothing."""
    if request_id in budget.holds:
        unit.record(budget, KeySpendReleased, key_id=budget.key_id, request_id=request_id)
