"""Account: whoever owns money."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from domain.eventsourced import Aggregate, DomainEvent


class AccountOpened(DomainEvent, frozen=True, kw_only=True):
    """``kind`` is user, key, wallet or platform."""

    TOPIC: ClassVar[str] = "Account.AccountOpened"
    account_id: str
    kind: str

    def apply(self, aggregate: Any) -> None:
        aggregate.account_id = self.account_id


class Account(Aggregate):
    KIND = "Account"

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.account_id = ""
