"""What stands in the tables, and what must stand there: a fold over the log that shares no code with the product."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from tests.support.ledger_waiting import Connection


class Event(NamedTuple):
    """One row of the log with its payload read as plain JSON."""

    position: int
    originator_id: UUID
    version: int
    topic: str
    recorded_at: datetime
    payload: dict[str, Any]

    @property
    def name(self) -> str:
        return self.topic.rpartition(".")[2]


class WalletRow(NamedTuple):
    version: int
    balance: int
    withdrawable: int
    held: int


def log_of(look: Connection) -> list[Event]:
    rows = look.execute(
        "SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events ORDER BY position"
    )
    return [Event(*row[:5], json.loads(row[5])) for row in rows]


def names_of(look: Connection, request_id: UUID | None = None) -> list[str]:
    """The names of all events, or of those that say that they belong to one request, in their order."""
    return [
        event.name
        for event in log_of(look)
        if request_id is None or str(request_id) in (event.payload.get("request_id"), event.payload.get("hold_id"))
    ]


def head_of(look: Connection) -> int:
    row = look.execute("SELECT position FROM ledger_head").fetchone()
    assert row is not None
    return int(row[0])


def wallets(look: Connection) -> dict[str, WalletRow]:
    rows = look.execute(
        "SELECT account_id, wallet_version, balance_micro_usd, withdrawable_micro_usd, held_micro_usd "
        "FROM wallet_balances"
    )
    return {row[0]: WalletRow(*row[1:]) for row in rows}


def balance_of(look: Connection, account_id: str) -> int:
    found = wallets(look).get(account_id)
    return found.balance if found else 0


def open_requests(look: Connection) -> dict[UUID, tuple[str, UUID, int]]:
    """Request to its account, gateway and reserved amount."""
    rows = look.execute("SELECT request_id, account_id, gateway_id, reserved_micro_usd FROM open_requests")
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def usage(look: Connection) -> dict[UUID, tuple[str, int, int, int, str, int, int, int]]:
    """Job to its account, prompt, completion and cached tokens, unit and units, cost and position."""
    rows = look.execute(
        "SELECT job_id, account_id, prompt_tokens, completion_tokens, cached_tokens, unit, units, cost_micro_usd, "
        "position FROM usage_entries"
    )
    return {row[0]: (row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]) for row in rows}


@dataclass
class Purse:
    """An account's money as the log tells it."""

    credit: int = 0
    earned: int = 0
    holds: dict[str, int] = field(default_factory=dict)
    version: int = 0

    def row(self) -> WalletRow:
        held = sum(self.holds.values())
        return WalletRow(self.version, self.credit + self.earned - held, self.earned - max(0, held - self.credit), held)


@dataclass
class Fold:
    purses: defaultdict[str, Purse] = field(default_factory=lambda: defaultdict(Purse))
    open: dict[UUID, tuple[str, UUID, int]] = field(default_factory=dict)
    usage: dict[UUID, tuple[str, int, int, int, str, int, int, int]] = field(default_factory=dict)

    def follow(self, event: Event) -> None:
        said = event.payload
        if event.topic.startswith("Wallet."):
            self._move_money(event.name, said)
        elif event.name == "RequestAdmitted":
            self.open[UUID(said["request_id"])] = (said["account_id"], UUID(said["gateway_id"]), said["reserved"])
        elif event.name in ("RequestSettled", "RequestReleased"):
            del self.open[UUID(said["request_id"])]
            if event.name == "RequestSettled" and not said["free"]:
                self.usage[UUID(said["job_id"])] = (
                    said["account_id"],
                    said["prompt_tokens"],
                    said["completion_tokens"],
                    said["cached_tokens"],
                    said["unit"],
                    said["units"],
                    said["cost"],
                    event.position,
                )

    def _move_money(self, name: str, said: dict[str, Any]) -> None:
        purse = self.purses[said["account_id"]]
        purse.version += 1
        match name:
            case "PromotionalCreditGranted":
                purse.credit += said["amount"]
            case "EarningCredited":
                purse.earned += said["amount"]
            case "HoldPlaced":
                assert said["hold_id"] not in purse.holds
                purse.holds[said["hold_id"]] = said["amount"]
            case "HoldReleased":
                assert purse.holds.pop(said["hold_id"]) == said["released"]
            case "HoldCaptured":
                assert purse.holds.pop(said["hold_id"]) == said["captured"] + said["released"]
                spent = sum(said["split"].values())
                from_credit = said["split"].get("promotional", 0) + said["split"].get("purchased", 0)
                assert spent == said["captured"]
                purse.credit -= from_credit
                purse.earned -= spent - from_credit
            case "WalletAdjusted":
                if said["bucket"] in ("promotional", "purchased"):
                    purse.credit += said["amount"]
                else:
                    purse.earned += said["amount"]
            case _:
                raise AssertionError(f"this fold does not know {name}")


def assert_books_are_sound(look: Connection) -> None:
    """The log is gapless and ordered, and every inline read model says what the log says."""
    log = log_of(look)
    assert [event.position for event in log] == list(range(1, len(log) + 1))
    assert head_of(look) == len(log)
    recorded = [event.recorded_at for event in log]
    assert recorded == sorted(recorded)
    versions: Counter[UUID] = Counter()
    fold = Fold()
    for event in log:
        versions[event.originator_id] += 1
        assert event.version == versions[event.originator_id]
        fold.follow(event)
    for purse in fold.purses.values():
        assert purse.row().balance >= 0
        assert 0 <= purse.row().withdrawable <= purse.row().balance
    assert wallets(look) == {account: purse.row() for account, purse in fold.purses.items()}
    assert open_requests(look) == fold.open
    assert usage(look) == fold.usage
