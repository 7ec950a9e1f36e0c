"""``darkbloomd audit``: what an auditor can do with only read access to a database."""

from __future__ import annotations

import click

from api.auditors import (
    commands_adjust,
    commands_books,
    commands_doctor,
    commands_export,
    commands_keys,
    commands_periods,
    commands_projections,
    commands_proofs,
)


@click.group()
def audit() -> None:
    """Check the books: balances, proofs, invariants."""


for _command in (
    commands_doctor.doctor,
    commands_books.trial_balance,
    commands_books.statement,
    commands_books.entry,
    commands_books.search,
    commands_books.holds,
    commands_export.export,
    commands_periods.periods,
    commands_periods.close_period,
    commands_adjust.adjust,
    commands_projections.lag,
    commands_projections.replay,
    commands_projections.rebuild,
    commands_proofs.verify,
    commands_proofs.export_events,
    commands_proofs.checkpoint,
    commands_proofs.prove,
    commands_proofs.verify_inclusion,
    commands_proofs.verify_consistency,
    commands_keys.keys,
    commands_keys.announce_key,
    commands_keys.retire_key,
    commands_keys.follow_keys,
):
    audit.add_command(_command)
