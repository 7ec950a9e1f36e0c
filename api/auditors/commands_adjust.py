"""``darkbloomd audit adjust``: corrections by hand, which two admins have to want."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID, uuid4

import click

from api.auditors.changes import adjustment_answer
from api.auditors.command_options import (
    Time,
    Usd,
    Where,
    admin_at_work,
    admin_key_option,
    books,
    json_option,
    on_database,
    print_json,
    print_table,
)
from domain.adjusting import AdjustmentState, ApproveAdjustment, ProposeAdjustment, RejectAdjustment
from domain.adjustments import REASON_CODES
from domain.eventsourced import Actor
from domain.journal import BUCKET_CODES
from domain.ledger import Command
from domain.money import format_usd
from projections.audit.adjustments import adjustments


@click.group()
def adjust() -> None:
    """Correct a wallet by hand: one admin proposes, another one approves."""


@adjust.command()
@click.option("--account", required=True, help="The account whose wallet is wrong.")
@click.option("--bucket", required=True, type=click.Choice(tuple(BUCKET_CODES)))
@click.option("--amount", required=True, type=Usd(signed=True), metavar="USD", help="What to add; negative takes.")
@click.option("--reason", required=True, type=click.Choice(tuple(REASON_CODES)))
@click.option("--reference", required=True, help="Where the papers are, such as a ticket's number.")
@click.option("--note", default="", help="Up to 500 characters; no names and no addresses, it stays for ever.")
@click.option("--effective-at", type=Time(), help="When it became true; without it, now.")
@click.option("--corrects", default="", help="The event that was wrong: its aggregate's id, a slash, its version.")
@click.option("--id", "adjustment_id", type=click.UUID, help="Your own id; a repeated call proposes nothing new.")
@admin_key_option
@json_option
@on_database
def propose(
    account: str,
    bucket: str,
    amount: int,
    reason: str,
    reference: str,
    note: str,
    effective_at: datetime | None,
    corrects: str,
    adjustment_id: UUID | None,
    admin_key: str,
    as_json: bool,
    where: Where,
) -> None:
    """Propose an adjustment. Nothing moves until another admin approves it."""
    chosen = adjustment_id or uuid4()

    def command(actor: Actor) -> Command[AdjustmentState]:
        return ProposeAdjustment(
            actor=actor,
            correlation_id=str(chosen),
            adjustment_id=chosen,
            account_id=account,
            bucket=bucket,
            amount_micro_usd=amount,
            reason=reason,
            reference=reference,
            note=note,
            effective_at=effective_at,
            corrects_event_id=corrects,
        )

    _run(command, admin_key, as_json, where)


@adjust.command()
@click.argument("adjustment_id", type=click.UUID)
@admin_key_option
@json_option
@on_database
def approve(adjustment_id: UUID, admin_key: str, as_json: bool, where: Where) -> None:
    """Approve another admin's adjustment: wallet and journal change at once."""

    def command(actor: Actor) -> Command[AdjustmentState]:
        return ApproveAdjustment(actor=actor, correlation_id=str(adjustment_id), adjustment_id=adjustment_id)

    _run(command, admin_key, as_json, where)


@adjust.command()
@click.argument("adjustment_id", type=click.UUID)
@click.option("--note", default="", help="Why, in up to 500 characters.")
@admin_key_option
@json_option
@on_database
def reject(adjustment_id: UUID, note: str, admin_key: str, as_json: bool, where: Where) -> None:
    """Reject an adjustment, or take your own back."""

    def command(actor: Actor) -> Command[AdjustmentState]:
        return RejectAdjustment(actor=actor, correlation_id=str(adjustment_id), adjustment_id=adjustment_id, note=note)

    _run(command, admin_key, as_json, where)


@adjust.command(name="list")
@click.option("--status", type=click.Choice(("all", "proposed", "approved", "rejected")), default="all")
@json_option
@on_database
def list_adjustments(status: str, as_json: bool, where: Where) -> None:
    """Adjustments in the order of their proposals."""
    with books(where) as (connection, _):
        found = adjustments(connection, status="" if status == "all" else status)
    if as_json:
        print_json({"adjustments": [adjustment_answer(state) for state in found]})
    else:
        _print(found)


def _run(
    make: Callable[[Actor], Command[AdjustmentState]],
    admin_key: str,
    as_json: bool,
    where: Where,
) -> None:
    with admin_at_work(where, admin_key) as admin:
        state = admin.ledger.execute(make(admin.actor))
    if as_json:
        print_json(adjustment_answer(state))
    else:
        _print([state])


def _print(found: list[AdjustmentState]) -> None:
    rows = [
        [
            state.proposal.adjustment_id,
            state.status,
            state.proposal.account_id,
            state.proposal.bucket,
            format_usd(state.proposal.amount),
            state.proposal.reason,
            state.proposal.actor.id,
            state.decided_by.id if state.decided_by else "",
        ]
        for state in found
    ]
    heads = ("adjustment", "status", "account", "bucket", "amount USD", "reason", "proposed by", "decided by")
    print_table(heads, rows, right=(4,))
