"""``darkbloomd audit``: what an auditor can do with only read access to a database."""

from __future__ import annotations

import click

from api.auditors import commands_adjust, commands_books, commands_export, commands_periods


@click.group()
def audit() -> None:
    """Check the books: balances, proofs, invariants."""


audit.add_command(commands_books.trial_balance)
audit.add_command(commands_books.statement)
audit.add_command(commands_books.entry)
audit.add_command(commands_books.search)
audit.add_command(commands_books.holds)
audit.add_command(commands_export.export)
audit.add_command(commands_periods.periods)
audit.add_command(commands_periods.close_period)
audit.add_command(commands_adjust.adjust)
