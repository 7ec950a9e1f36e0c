"""``darkbloomd audit periods | close-period``."""

from __future__ import annotations

from pathlib import Path

import click
import psycopg

from api import bootstrap
from api.auditors.changes import closing_balance, period_answer
from api.auditors.command_options import (
    admin_key_option,
    books,
    json_option,
    on_database,
    print_json,
    print_table,
    require_admin,
    time_text,
)
from api.command_line import read_settings
from domain.closing import ClosePeriod, LockPeriod
from domain.eventsourced import Actor
from domain.periods import PeriodClosed, end_of
from projections.audit.adjustments import closed_periods
from projections.audit.instants import snapshot


@click.command()
@json_option
@on_database
def periods(as_json: bool, database_url: str | None, data_dir: Path | None) -> None:
    """The closed periods, with the hash of each one's trial balance."""
    with books(database_url, data_dir) as (connection, _):
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
def close_period(period: str, admin_key: str, as_json: bool, database_url: str | None, data_dir: Path | None) -> None:
    """Close a month such as 2026-05: nothing can be dated into it any more. Closing it again changes nothing."""
    settings = read_settings(database_url=database_url, data_dir=data_dir)
    end = end_of(period)
    with bootstrap.database_of_command(settings) as dsn, bootstrap.ledger_writer(dsn, settings) as writer:
        actor = Actor("admin", require_admin(dsn, admin_key).key_id)
        closing = writer.execute(LockPeriod(actor=actor, correlation_id=period, period=period))
        if closing is None:
            with psycopg.connect(dsn, autocommit=True) as connection, snapshot(connection):
                found = closing_balance(connection, end)
            closing = writer.execute(
                ClosePeriod(
                    actor=actor,
                    correlation_id=period,
                    period=period,
                    position=found.position,
                    trial_balance_sha256=found.trial_balance_sha256,
                )
            )
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
