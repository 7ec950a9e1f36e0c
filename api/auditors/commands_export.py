"""``darkbloomd audit export``."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import click

from api.auditors.command_options import Time, Where, books, on_database
from projections.audit import export as exports
from projections.audit.instants import between


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--what", type=click.Choice(tuple(exports.KINDS)), default="entries", show_default=True)
@click.option("--format", "format_", type=click.Choice(exports.FORMATS), default="jsonl", show_default=True)
@click.option("--from", "start", type=Time(), help="What was recorded after this time.")
@click.option("--to", "end", type=Time(), help="What was recorded up to this time.")
@on_database
def export(
    file: Path,
    what: str,
    format_: str,
    start: datetime | None,
    end: datetime | None,
    where: Where,
) -> None:
    """Write an export to FILE (- is standard output); its last line has the totals and the SHA-256 of the rest."""
    trailer = b""
    with books(where) as (connection, _), _complete(file) as output:
        for piece in exports.export(connection, between(connection, start, end), what=what, format_=format_):
            output.write(piece)
            trailer = piece
    click.echo(trailer.decode().strip(), err=True)


@contextmanager
def _complete(file: Path) -> Generator[BinaryIO, None, None]:
    """Write a file that only appears under its name once it is complete."""
    if str(file) == "-":
        yield sys.stdout.buffer
        return
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as output:
            yield output
        partial.replace(file)
    except OSError as error:
        raise click.ClickException(f"cannot write {file}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
