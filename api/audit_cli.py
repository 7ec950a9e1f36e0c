"""``darkbloomd audit``: what an auditor can do with only read access to a database."""

from __future__ import annotations

import click

from api.auditors.commands_doctor import doctor


@click.group()
def audit() -> None:
    """Check the books: balances, proofs, invariants."""


audit.add_command(doctor)
