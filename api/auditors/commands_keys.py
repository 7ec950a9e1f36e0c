"""``darkbloomd audit keys``, ``announce-key`` and ``retire-key``: the keys that sign checkpoints."""

from __future__ import annotations

from pathlib import Path

import click
import psycopg

from api import bootstrap
from api.command_line import data_dir_option, explained, settings_of
from projections import checkpoints
from projections.checkpoints import CheckpointRefused


@click.command()
@data_dir_option
@explained
def keys(data_dir: Path | None) -> None:
    """List the public keys of this log, the oldest first."""
    with bootstrap.database_of_command(settings_of(data_dir=data_dir)) as dsn, psycopg.connect(dsn) as connection:
        for entry in checkpoints.keys(connection):
            retired = f"retired {entry.retired_at:%Y-%m-%d}" if entry.retired_at else "signs"
            click.echo(f"{entry.key} {retired}, announced {entry.announced_at:%Y-%m-%d}")


@click.command(name="announce-key")
@data_dir_option
@explained
def announce_key(data_dir: Path | None) -> None:
    """Make a successor to the present key. From the next checkpoint on, both sign."""
    with bootstrap.notary_and_database(settings_of(data_dir=data_dir)) as (notary, connection):
        try:
            with connection.transaction():
                checkpoints.published_signers(connection, notary)
                present = notary.signers()
                successor = notary.successor()
                checkpoints.announce(connection, present, successor)
        except CheckpointRefused as error:
            raise click.ClickException(str(error)) from None
        notary.write([*present, successor])
    click.echo(str(successor.key))


@click.command(name="retire-key")
@click.argument("key_id")
@data_dir_option
@explained
def retire_key(key_id: str, data_dir: Path | None) -> None:
    """Let a key sign no more. Its public half stays published, for the checkpoints that it signed."""
    with bootstrap.notary_and_database(settings_of(data_dir=data_dir)) as (notary, connection):
        try:
            staying = [signer for signer in notary.signers() if signer.key.key_id.hex() != key_id]
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        active = [entry.key for entry in checkpoints.keys(connection) if entry.retired_at is None]
        leaving = [key for key in active if key.key_id.hex() == key_id]
        if not leaving:
            raise click.ClickException(f"no key {key_id} signs for this log; 'darkbloomd audit keys' lists them")
        if not staying:
            raise click.ClickException("this is the only key; announce a successor first")
        notary.write(staying)
        checkpoints.retire(connection, leaving[0])
    click.echo(f"key {key_id} signs no more")
