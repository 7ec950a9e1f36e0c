"""Commands on the ledger with everything filled in that a test does not care about.

The quote is one micro-USD a token, so an amount is also the number of tokens that it pays for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from adapters.postgres.writer import LedgerWriter
from domain.adjusting import ProposeAdjustment
from domain.eventsourced import Actor
from domain.ledger import Admit, Dispatch, GrantCredit, Release, Settle
from domain.pricing import Quote
from domain.requests import job_id_of

MODEL = "acme/small-8bit"
GATEWAY = UUID("9d0c7a3e-0000-4000-8000-000000000001")
QUOTE = Quote(
    input_price=1_000_000,
    output_price=1_000_000,
    cache_read_price=500_000,
    source="default",
    book_version=1,
    minimum_charge=1,
)
EXPIRES_AT = datetime(2100, 1, 1, tzinfo=UTC)

FIRST_ADMIN, SECOND_ADMIN = Actor("admin", "key_1"), Actor("admin", "key_2")

PROVIDER_ID = "c0ffee00-0000-4000-8000-000000000001"
MACHINE_ID = "ab" * 32


def account(name: str = "account") -> str:
    """An account that no other test and no earlier example has used."""
    return f"{name}-{uuid4().hex[:12]}"


def grant(account_id: str, amount: int, reference: str | None = None) -> GrantCredit:
    return GrantCredit(account_id=account_id, amount_micro_usd=amount, reference=reference or uuid4().hex)


def admit(
    account_id: str,
    amount: int,
    request_id: UUID | None = None,
    *,
    gateway_id: UUID = GATEWAY,
    model: str = MODEL,
    expires_at: datetime = EXPIRES_AT,
) -> Admit:
    """An admission that holds exactly ``amount``."""
    return Admit(
        request_id=request_id or uuid4(),
        account_id=account_id,
        key_id="key_1",
        gateway_id=str(gateway_id),
        model=model,
        prompt_estimate=0,
        prompt_bound=0,
        output_bound=amount,
        quote=QUOTE,
        expires_at=expires_at,
    )


def dispatch(
    request_id: UUID, attempt: int = 1, *, provider: str = "", provider_id: str = PROVIDER_ID, machine: str = MACHINE_ID
) -> Dispatch:
    """``provider`` is the account that earns; empty for a machine that nobody linked."""
    return Dispatch(
        request_id=request_id,
        attempt=attempt,
        provider_id=provider_id,
        machine_id=machine,
        provider_key="provider-key",
        provider_account_id=provider,
    )


def settle(account_id: str, request_id: UUID, cost: int, attempt: int = 1, *, fee_percent: int = 0) -> Settle:
    return Settle(
        request_id=request_id,
        account_id=account_id,
        job_id=str(job_id_of(request_id, attempt)),
        claimed_prompt_tokens=0,
        claimed_completion_tokens=cost,
        completion_bound=cost,
        fee_percent=fee_percent,
    )


def propose(account_id: str, amount: int = 5, **changes: Any) -> ProposeAdjustment:
    """An adjustment of promotional credit that the first admin asks for."""
    adjustment_id = changes.pop("adjustment_id", None) or uuid4()
    values: dict[str, Any] = {
        "actor": FIRST_ADMIN,
        "correlation_id": str(adjustment_id),
        "adjustment_id": adjustment_id,
        "account_id": account_id,
        "bucket": "promotional",
        "amount_micro_usd": amount,
        "reason": "loss",
        "reference": "ticket 1",
    }
    return ProposeAdjustment(**{**values, **changes})


def release(account_id: str, request_id: UUID, reason: str = "failed") -> Release:
    return Release(request_id=request_id, account_id=account_id, reason=reason)


def settled_request(
    writer: LedgerWriter, account_id: str, *, hold: int, cost: int, provider: str = "", fee_percent: int = 0
) -> UUID:
    """A request from its admission to its settlement."""
    request_id = uuid4()
    writer.execute(admit(account_id, hold, request_id))
    writer.execute(dispatch(request_id, provider=provider))
    writer.execute(settle(account_id, request_id, cost, fee_percent=fee_percent))
    return request_id
