"""``darkbloomd audit lag | replay | rebuild``: how true the read models are, and making them anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import psycopg

from api import bootstrap
from api.command_line import data_dir_option, explained, settings_of
from projections.diff import Compared, replay_and_compare
from projections.lag import Lag, lag_of
from projections.page import EventNotReadable
from projections.rebuild import RebuildFailed
from projections.rebuild import rebuild as rebuild_tables
from projections.registry import READ_MODELS

projection_option = click.option(
    "--projection",
    "names",
    multiple=True,
    type=click.Choice(sorted(READ_MODELS)),
    help="Only this read model; may be given several times.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")


@click.command()
@json_option
@data_dir_option
@explained
def lag(as_json: bool, data_dir: Path | None) -> None:
    """Show how far each projection is behind the log. Exit code 1 when one stands still."""
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        found = lag_of(connection)
    if as_json:
        click.echo(msgspec.json.encode({"projections": [one._asdict() for one in found]}))
    else:
        for one in found:
            click.echo(_lag_line(one))
    if any(one.failure for one in found):
        raise SystemExit(1)


@click.command()
@projection_option
@click.option("--to-position", type=click.IntRange(0), help="Replay only so far. Default: to where the table stands.")
@json_option
@data_dir_option
@explained
def replay(names: Sequence[str], to_position: int | None, as_json: bool, data_dir: Path | None) -> None:
    """Replay the log and compare with the live tables. Exit code 1 when one differs.

    It only reads; the database's user needs no more than that and the right to make temporary tables.
    """
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn:
        try:
            compared = replay_and_compare(dsn, names, to_position=to_position)
        except EventNotReadable as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(msgspec.json.encode({"projections": compared}))
    else:
        for one in compared:
            click.echo(_comparison_line(one))
    if any(one.identical is False for one in compared):
        raise SystemExit(1)


@click.command()
@projection_option
@json_option
@data_dir_option
@explained
def rebuild(names: Sequence[str], as_json: bool, data_dir: Path | None) -> None:
    """Rebuild read models from the log beside the live ones and put them in their place. Everything keeps running."""
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn:
        try:
            rebuilt = rebuild_tables(dsn, names)
        except (RebuildFailed, EventNotReadable) as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(msgspec.json.encode(rebuilt._asdict()))
        return
    click.echo(f"rebuilt up to position {rebuilt.position:,} in {rebuilt.seconds:.1f} s: {', '.join(rebuilt.tables)}")
    click.echo(f"nothing could be written for {rebuilt.held_seconds * 1000:.0f} ms")


def _lag_line(one: Lag) -> str:
    line = f"{one.name:<22} at {one.position:>12,}, behind by {one.positions:,} events and {one.seconds:.1f} s"
    return f"{line}; stands still: {one.failure}" if one.failure else line


def _comparison_line(one: Compared) -> str:
    verdict = {True: "identical", False: "DIFFERS", None: "not compared"}[one.identical]
    line = f"{one.name:<22} {one.rows:>12,} rows at {one.position:>12,}  {one.replayed_sha256[:16]}  {verdict}"
    return f"{line}\n  {one.first_difference}" if one.first_difference else line
