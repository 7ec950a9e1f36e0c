"""What the books must say after each command, worked out in plain numbers and dicts.

It knows the commands' meaning from the specification of money, not from their code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from math import floor
from typing import Any
from uuid import UUID

BUCKETS = ("promotional", "purchased", "reward", "referral", "provider")
CODES = {"promotional": "2005", "purchased": "2000", "reward": "2120", "referral": "2110", "provider": "2100"}

Line = tuple[str, str, str, int]


class Refused(Exception):
    """The command must fail, and leave nothing behind."""


@dataclass
class Attempt:
    provider: str
    machine: str
    owner: str


@dataclass
class Request:
    """``prices`` are of a million tokens read, of a million written, of one of the quote's unit, and of a million that
    were remembered instead of read."""

    account: str
    prices: tuple[int, int, Fraction, int]
    minimum: int
    bounds: tuple[int, int, int]
    key: str = ""
    limit: int | None = None
    """What its key may spend in a day, if that is limited."""
    attempts: dict[int, Attempt] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    end: dict[str, Any] | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int, units: int, remembered_tokens: int = 0) -> int:
        read, written, unit, remembered = self.prices
        total = (prompt_tokens - remembered_tokens) * read // 10**6 + remembered_tokens * remembered // 10**6
        total += completion_tokens * written // 10**6 + floor(units * unit)
        return max(total, self.minimum)

    @property
    def reserved(self) -> int:
        return self.cost(*self.bounds)


@dataclass
class Machine:
    description: Any = None
    owner: str = ""
    sessions: set[str] = field(default_factory=set)


class Model:
    def __init__(self) -> None:
        self.accounts: set[str] = set()
        self.buckets: dict[str, dict[str, int]] = {}
        self.references: set[str] = set()
        self.requests: dict[UUID, Request] = {}
        self.entries: dict[str, list[Line]] = {}
        self.spent: dict[tuple[str, date], int] = {}
        self.anomalies = 0
        self.machines: dict[str, Machine] = {}

    def copy(self) -> Model:
        return copy.deepcopy(self)

    # --- what can be read ------------------------------------------------------------------------------------------

    def wallet(self, account: str) -> dict[str, int]:
        return self.buckets.setdefault(account, dict.fromkeys(BUCKETS, 0))

    def holds(self, account: str) -> dict[str, int]:
        return {
            str(key): request.reserved
            for key, request in self.requests.items()
            if request.account == account and request.end is None
        }

    def balance(self, account: str) -> tuple[int, int]:
        wallet, held = self.wallet(account), sum(self.holds(account).values())
        credit = wallet["promotional"] + wallet["purchased"]
        earned = wallet["reward"] + wallet["referral"] + wallet["provider"]
        shortfall = held - credit if held > credit else 0
        return credit + earned - held, earned - shortfall

    def key_holds(self, key_id: str) -> dict[str, int]:
        return {
            str(key): request.reserved
            for key, request in self.requests.items()
            if request.key == key_id and request.limit is not None and request.end is None
        }

    # --- what can be done ------------------------------------------------------------------------------------------

    def open_account(self, account: str) -> bool:
        is_new = account not in self.accounts
        self.accounts.add(account)
        return is_new

    def grant(self, account: str, amount: int, reference: str) -> tuple[int, int]:
        if reference not in self.references:
            if amount <= 0:
                raise Refused
            self.references.add(reference)
            self.wallet(account)["promotional"] += amount
            self.entries[f"credit:{reference}"] = [("5000", "", "debit", amount), ("2005", account, "credit", amount)]
        return self.balance(account)

    def admit(self, key: UUID, request: Request, today: date) -> int:
        if key not in self.requests:
            if self.balance(request.account)[0] < request.reserved:
                raise Refused
            taken = self.spent.get((request.key, today), 0) + sum(self.key_holds(request.key).values())
            if request.limit is not None and taken + request.reserved > request.limit:
                raise Refused
            self.requests[key] = request
        return self.requests[key].reserved

    def dispatch(self, key: UUID, number: int, attempt: Attempt, failed: set[int]) -> bool:
        request = self._request(key)
        if request.end is not None:
            return False
        request.failed |= failed & request.attempts.keys()
        return request.attempts.setdefault(number, attempt).provider == attempt.provider

    def settle(
        self,
        key: UUID,
        number: int,
        *,
        account: str,
        claimed: tuple[int, int, int, int],
        delivered: tuple[int, int],
        fee_percent: int,
        today: date,
    ) -> dict[str, Any]:
        request = self._request(key)
        if request.end is not None:
            return request.end
        attempt = request.attempts.get(number)
        if attempt is None or number in request.failed or account != request.account:
            raise Refused
        if min(*claimed, *delivered) < 0 or not 0 <= fee_percent <= 100:
            raise Refused
        read = min(claimed[0], request.bounds[0])
        known = (request.bounds[0], *delivered, read)
        used = tuple(map(min, claimed, known, (*request.bounds, read)))
        self.anomalies += used != claimed
        free = attempt.owner == account
        cost = 0 if free else min(request.cost(*used), request.reserved)
        fee = cost * fee_percent // 100
        request.end = {
            "attempt": number,
            **dict(zip(("prompt_tokens", "completion_tokens", "units", "cached_tokens"), used, strict=True)),
            "cost": cost,
            "fee": fee,
            "provider_amount": cost - fee,
            "free": free,
        }
        if request.limit is not None:
            self.spent[request.key, today] = self.spent.get((request.key, today), 0) + cost
        if cost:
            self._pay(f"settle:{key}:{number}", account, attempt, cost, fee)
        return request.end

    def release(self, key: UUID, *, account: str, reason: str, failed: set[int]) -> dict[str, Any]:
        request = self._request(key)
        if request.end is not None:
            return request.end
        if account != request.account:
            raise Refused
        request.failed |= failed & request.attempts.keys()
        request.end = {"reason": reason}
        return request.end

    def open_session(self, machine_id: str, session: str, description: Any, owner: str) -> str:
        machine = self.machines.setdefault(machine_id, Machine())
        if session not in machine.sessions:
            machine.sessions.add(session)
            machine.description = description
            machine.owner = owner or machine.owner
        return machine.owner

    def close_session(self, machine_id: str, session: str) -> None:
        self.machines.setdefault(machine_id, Machine()).sessions.discard(session)

    # --- money -----------------------------------------------------------------------------------------------------

    def _request(self, key: UUID) -> Request:
        if key not in self.requests:
            raise Refused
        return self.requests[key]

    def _pay(self, entry: str, account: str, attempt: Attempt, cost: int, fee: int) -> None:
        lines: list[Line] = []
        wallet, left = self.wallet(account), cost
        for bucket in BUCKETS:
            taken = min(wallet[bucket], left)
            wallet[bucket] -= taken
            left -= taken
            lines.append((CODES[bucket], account, "debit", taken))
        assert left == 0
        if attempt.owner:
            self.wallet(attempt.owner)["provider"] += cost - fee
            lines.append(("2100", attempt.owner, "credit", cost - fee))
        else:
            lines.append(("2190", attempt.machine, "credit", cost - fee))
        lines.append(("4000", "", "credit", fee))
        self.entries[entry] = [line for line in lines if line[3]]
