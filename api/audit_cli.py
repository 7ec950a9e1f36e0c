"""``darkbloomd audit``: what an auditor can do with only read access to a database."""

from __future__ import annotations

import click

from api.auditors.commands_projections import lag, rebuild, replay


@click.group()
def audit() -> None:
    """Check the books: balances, proofs, invariants."""


audit.add_command(lag)
audit.add_command(rebuild)
audit.add_command(replay)
