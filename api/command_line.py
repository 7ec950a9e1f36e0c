"""What the commands of ``darkbloomd`` share: settings from options, and failures in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import psycopg
from pydantic import ValidationError

from adapters.postgres import migrate
from adapters.postgres.embedded import EmbeddedPostgresError
from adapters.scheduler.brokers import BrokerUnusable
from adapters.settings import Settings
from api import server
from domain.errors import DarkbloomError

F = TypeVar("F", bound=Callable[..., Any])

_MENDABLE = (EmbeddedPostgresError, migrate.DatabaseUnusable, BrokerUnusable, server.PortTaken, DarkbloomError)

data_dir_option = click.option("--data-dir", type=click.Path(path_type=Path), help="Where the embedded database lives.")
database_url_option = click.option("--database-url", help="A PostgreSQL server; reading needs only SELECT there.")


def explained(command: F) -> F:
    """Turn the failures that an operator can mend into one line and exit code 1, and Ctrl-C into 130."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except _MENDABLE as error:
            raise click.ClickException(str(error)) from None
        except psycopg.OperationalError as error:
            raise click.ClickException(f"the database failed: {str(error).splitlines()[0]}") from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise click.ClickException(f"this database user may not do that: {error.diag.message_primary}") from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None

    return wrapped  # type: ignore[return-value]  # the wrapper has the command's own signature


def settings_of(**overrides: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            ": ".join([*(f"DARKBLOOM_{str(part).upper()}" for part in problem["loc"][:1]), problem["msg"]])
            for problem in error.errors()
        )
        raise click.ClickException(f"the settings are not valid: {problems}") from None
