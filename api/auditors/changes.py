"""What admins change: adjustments that two of them want, and the closing of periods (money, section 12.7)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auditors.bodies import read_body
from api.auditors.desk import PREFIX, answer, desk_of
from api.auditors.query import id_of
from domain.adjusting import AdjustmentState, ApproveAdjustment, ProposeAdjustment, RejectAdjustment
from domain.closing import ClosePeriod, LockPeriod
from domain.eventsourced import Actor
from domain.keys import Caller
from domain.periods import PeriodClosed, end_of
from projections.audit import adjustments, trial_balance
from projections.audit.instants import Connection, at_head
from projections.audit.sources import sources_of

router = APIRouter()


class ProposalBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``adjustment_id`` is the caller's own, so that a repeated call proposes nothing new."""

    adjustment_id: UUID | None = None
    account_id: str
    bucket: str
    amount_micro_usd: int
    reason: str
    reference: str
    note: str = ""
    effective_at: datetime | None = None
    corrects_event_id: str = ""


class RejectionBody(msgspec.Struct, forbid_unknown_fields=True):
    note: str = ""


class AdjustmentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    adjustment_id: str
    status: str
    account_id: str
    bucket: str
    amount_micro_usd: int
    reason: str
    reference: str
    note: str
    effective_at: datetime
    corrects_event_id: str
    proposed_by: str
    proposed_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    entry_id: UUID | None


class PeriodAnswer(msgspec.Struct, frozen=True, kw_only=True):
    period: str
    position: int
    trial_balance_sha256: str
    closed_at: datetime
    closed_by: str


@router.post(f"{PREFIX}/adjustments")
async def propose_adjustment(request: Request) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, change=True)
    body = await read_body(request, ProposalBody)
    adjustment_id = body.adjustment_id or uuid4()
    state = await desk.ledger.run(
        ProposeAdjustment(
            actor=_actor(query.caller),
            correlation_id=str(adjustment_id),
            adjustment_id=adjustment_id,
            account_id=body.account_id,
            bucket=body.bucket,
            amount_micro_usd=body.amount_micro_usd,
            reason=body.reason,
            reference=body.reference,
            note=body.note,
            effective_at=body.effective_at,
            corrects_event_id=body.corrects_event_id,
        )
    )
    return answer(adjustment_answer(state))


@router.get(f"{PREFIX}/adjustments")
async def list_adjustments(request: Request) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, ("status",))
    status = query.choice("status", ("all", "proposed", "approved", "rejected"))
    states = await desk.read(lambda c: adjustments.adjustments(c, status="" if status == "all" else status))
    return answer({"adjustments": [adjustment_answer(state) for state in states]})


@router.post(f"{PREFIX}/adjustments/{{adjustment_id}}/approve")
async def approve_adjustment(request: Request, adjustment_id: str) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, change=True)
    command = ApproveAdjustment(
        actor=_actor(query.caller),
        correlation_id=adjustment_id.lower(),
        adjustment_id=id_of(adjustment_id, "adjustment_id"),
    )
    return answer(adjustment_answer(await desk.ledger.run(command)))


@router.post(f"{PREFIX}/adjustments/{{adjustment_id}}/reject")
async def reject_adjustment(request: Request, adjustment_id: str) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, change=True)
    body = await read_body(request, RejectionBody)
    command = RejectAdjustment(
        actor=_actor(query.caller),
        correlation_id=adjustment_id.lower(),
        adjustment_id=id_of(adjustment_id, "adjustment_id"),
        note=body.note,
    )
    return answer(adjustment_answer(await desk.ledger.run(command)))


@router.get(f"{PREFIX}/periods")
async def list_periods(request: Request) -> Response:
    desk = desk_of(request)
    await desk.admit(request)
    closed = await desk.read(adjustments.closed_periods)
    return answer({"periods": [period_answer(closing) for closing in closed]})


@router.post(f"{PREFIX}/periods/{{period}}/close")
async def close_period(request: Request, period: str) -> Response:
    """Lock the month, then record its trial balance; a call that was cut off in between is simply repeated."""
    desk = desk_of(request)
    query = await desk.admit(request, change=True)
    end = end_of(period)
    lock = LockPeriod(actor=_actor(query.caller), correlation_id=period, period=period)
    closing = await desk.ledger.run(lock)
    if closing is None:
        found = await desk.read(lambda connection: closing_balance(connection, end))
        closing = await desk.ledger.run(close_command(lock, found))
    return answer(period_answer(closing))


def closing_balance(connection: Connection, end: datetime) -> trial_balance.TrialBalance:
    """What was effective at a period's end, as it is known now that the period is locked."""
    return trial_balance.effective(connection, end, at_head(connection), sources_of(connection))


def close_command(lock: LockPeriod, found: trial_balance.TrialBalance) -> ClosePeriod:
    """What closes a period that is locked."""
    return ClosePeriod(
        actor=lock.actor,
        correlation_id=lock.correlation_id,
        period=lock.period,
        position=found.position,
        trial_balance_sha256=found.trial_balance_sha256,
    )


def adjustment_answer(state: AdjustmentState) -> AdjustmentAnswer:
    proposal = state.proposal
    return AdjustmentAnswer(
        adjustment_id=proposal.adjustment_id,
        status=state.status,
        account_id=proposal.account_id,
        bucket=proposal.bucket,
        amount_micro_usd=proposal.amount,
        reason=proposal.reason,
        reference=proposal.reference,
        note=proposal.note,
        effective_at=proposal.effective_at,
        corrects_event_id=proposal.corrects_event_id,
        proposed_by=proposal.actor.id,
        proposed_at=proposal.timestamp,
        decided_by=state.decided_by.id if state.decided_by else None,
        decided_at=state.decided_at,
        entry_id=state.entry_id,
    )


def period_answer(closing: PeriodClosed) -> PeriodAnswer:
    return PeriodAnswer(
        period=closing.period,
        position=closing.position,
        trial_balance_sha256=closing.trial_balance_sha256,
        closed_at=closing.timestamp,
        closed_by=closing.actor.id,
    )


def _actor(caller: Caller) -> Actor:
    return Actor("admin", caller.key_id)
