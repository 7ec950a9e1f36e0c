"""What the auditor's commands share: where they read, in whose name they change, and how they print."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import click
import msgspec
import psycopg

from api import bootstrap
from api.command_line import data_dir_option, database_url_option, explained, settings_of
from domain.errors import Forbidden, InvalidRequest
from domain.eventsourced import Actor
from domain.ledger import Command
from domain.money import NotAnAmount, parse_usd
from projections.audit.instants import Connection, parse_time, snapshot
from projections.audit.sources import EVENTS_ALONE, Sources, sources_of

R = TypeVar("R")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
from_events_option = click.option(
    "--from-events", is_flag=True, help="Leave the read models out and add up the events alone; slower."
)
limit_option = click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True)
cursor_option = click.option("--cursor", default="", help="Where the page before ended.")
admin_key_option = click.option(
    "--admin-key",
    envvar="DARKBLOOM_ADMIN_KEY",
    required=True,
    metavar="KEY",
    help="Your admin key; better given as DARKBLOOM_ADMIN_KEY than here.",
)


class Where(NamedTuple):
    """Which database a command works on; None leaves it to the settings."""

    database_url: str | None
    data_dir: Path | None


def on_database(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command ``where``, from the options that say which database, and tells failures in one line."""

    @wraps(command)
    def gathered(*, database_url: str | None, data_dir: Path | None, **options: Any) -> None:
        command(where=Where(database_url, data_dir), **options)

    return database_url_option(data_dir_option(explained(gathered)))


class Time(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """An RFC 3339 time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return parse_time(value, "time")
        except InvalidRequest:
            self.fail(f"{value[:40]!r} is not a time such as 2026-05-31T23:59:59.999999Z", param, ctx)


class Usd(click.ParamType):  # type: ignore[type-arg]  # the same
    """Dollars, with a sign where that makes sense; micro-USD inside."""

    name = "usd"

    def __init__(self, *, signed: bool = False) -> None:
        self._signed = signed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        negative = self._signed and value.startswith("-")
        try:
            amount = parse_usd(value[1:] if negative else value)
        except NotAnAmount as error:
            self.fail(str(error), param, ctx)
        return -amount if negative else amount


@contextmanager
def books(where: Where, *, from_events: bool = False) -> Generator[tuple[Connection, Sources], None, None]:
    """One snapshot of the books, for reading alone."""
    with (
        bootstrap.database_of_command(settings_of(**where._asdict())) as dsn,
        psycopg.connect(dsn, autocommit=True) as connection,
        snapshot(connection),
    ):
        yield connection, EVENTS_ALONE if from_events else sources_of(connection)


class BlockingLedger(Protocol):
    def execute(self, command: Command[R]) -> R: ...


class AdminAtWork(NamedTuple):
    """An admin with a writer of their own beside whatever else runs."""

    actor: Actor
    ledger: BlockingLedger
    dsn: str


@contextmanager
def admin_at_work(where: Where, secret: str) -> Generator[AdminAtWork, None, None]:
    """Raises Forbidden unless the secret is an active admin key of this database."""
    settings = settings_of(**where._asdict())
    with bootstrap.database_of_command(settings) as dsn:
        caller = bootstrap.caller_of(dsn, secret)
        if caller is None or caller.key.role != "admin":
            raise Forbidden("This is no active admin key; make one with 'darkbloomd keys create --role admin'.")
        with bootstrap.ledger_writer(dsn, settings) as writer:
            yield AdminAtWork(Actor("admin", caller.key_id), writer, dsn)


def print_json(found: object) -> None:
    click.echo(msgspec.json.encode(found).decode())


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns under their heads; those in ``right`` are flush right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def time_text(moment: datetime) -> str:
    return msgspec.to_builtins(moment)  # type: ignore[no-any-return]  # a time becomes its RFC 3339 text
