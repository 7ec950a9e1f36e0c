"""``darkbloomd audit keys``, ``announce-key`` and ``retire-key``: the keys that sign checkpoints."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import psycopg

from api import bootstrap
from api.auditors.evidence import Tampered, Unreadable, existing_file, key_option, read_keys, read_text
from api.command_line import data_dir_option, explained, settings_of
from domain.transparency import succession
from domain.transparency.note import MalformedNote, SignatureInvalid
from projections import checkpoints
from projections.checkpoints import CheckpointRefused


class _Published(msgspec.Struct):
    announcement: str | None


class _KeyList(msgspec.Struct):
    """What GET /v1/transparency/keys answers, as far as trust needs it."""

    keys: list[_Published]


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


@click.command(name="follow-keys")
@click.argument("published", type=existing_file)
@key_option
def follow_keys(published: Path, keys: tuple[str, ...]) -> None:
    """Print the keys that follow from those that you trust, without any database."""
    trusted = read_keys(keys)
    if not trusted:
        raise Unreadable("say with --key which key you trust")
    try:
        listed = msgspec.json.decode(read_text(published), type=_KeyList).keys
        announcements = [entry.announcement for entry in listed if entry.announcement]
        found = succession.follow(trusted, announcements, bootstrap.verify_signature)
    except (msgspec.DecodeError, MalformedNote) as error:
        raise Unreadable(f"{published} is not what GET /v1/transparency/keys answers: {error}") from None
    except SignatureInvalid as error:
        raise Tampered(str(error)) from None
    for key in found:
        click.echo(str(key))
