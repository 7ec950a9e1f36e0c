"""``darkbloomd audit periods | close-period``."""

from __future__ import annotations

import click
import psycopg

from api.auditors.changes import close_command, closing_balance, period_answer
from api.auditors.command_options import (
    Where,
    admin_at_work,
    admin_key_option,
    books,
    json_option,
    on_database,
    print_json,
    print_table,
    time_text,
)
from domain.closing import LockPeriod
from domain.periods import PeriodClosed, end_of
from projections.audit.adjustments import closed_periods
from projections.audit.instants import snapshot


@click.command()
@json_option
@on_database
def periods(as_json: bool, where: Where) -> None:
    """The closed periods, with the hash of each one's trial balance."""
    with books(where) as (connection, _):
        found = closed_periods(connection)
    if as_json:
        print_json({"periods": [period_answer(closing) for closing in found]})
    else:
        _print(found)


@click.command(name="close-period")
@click.argument("period")
@admin_key_option
@json_option
@on_database
def close_period(period: str, admin_key: str, as_json: bool, where: Where) -> None:
    """Close a month such as 2026-05: nothing can be dated into it any more. Closing it again changes nothing."""
    end = end_of(period)
    with admin_at_work(where, admin_key) as admin:
        lock = LockPeriod(actor=admin.actor, correlation_id=period, period=period)
        closing = admin.ledger.execute(lock)
        if closing is None:
            with psycopg.connect(admin.dsn, autocommit=True) as connection, snapshot(connection):
                found = closing_balance(connection, end)
            closing = admin.ledger.execute(close_command(lock, found))
    if as_json:
        print_json(period_answer(closing))
    else:
        _print([closing])


def _print(found: list[PeriodClosed]) -> None:
    rows = [
        [one.period, str(one.position), time_text(one.timestamp), one.actor.id, one.trial_balance_sha256]
        for one in found
    ]
    print_table(("period", "position", "closed", "by", "trial balance sha256"), rows, right=(1,))
