"""The ``darkbloom`` command.

Only the command that serves imports MLX, so that help and version answer at once and on any machine.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

import click

from agent.errors import StartError
from agent.log import LEVELS, configure
from agent.settings import DEFAULT_COORDINATOR, link_settings, serve_settings
from agent.version import agent_version


def _logging_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--verbose``, ``--quiet`` and ``--log-level``, accepted before and after the subcommand."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Log more; the same as --log-level debug."),
        click.option("-q", "--quiet", is_flag=True, help="Log errors only."),
        click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="Log from this level."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(agent_version(), prog_name="darkbloom", message="%(prog)s %(version)s")
@_logging_options
@click.pass_context
def darkbloom(context: click.Context, verbose: bool, quiet: bool, log_level: str | None) -> None:
    """Serve models of this machine to the Darkbloom network."""
    context.obj = _level(verbose, quiet, log_level)


_coordinator_option = click.option(
    "--coordinator",
    metavar="URL",
    default=DEFAULT_COORDINATOR,
    envvar="DARKBLOOM_COORDINATOR_URL",
    show_default=True,
    show_envvar=True,
    help="The coordinator; http, https, ws or wss.",
)


@darkbloom.command()
@_coordinator_option
@click.option("--model", "models", metavar="PATH", multiple=True, required=True, help="A folder with MLX weights.")
@click.option(
    "--max-concurrent",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Requests that each model answers at one time; twice as many wait.",
)
@click.option(
    "--private-only",
    is_flag=True,
    envvar="DARKBLOOM_PRIVATE_ONLY",
    show_envvar=True,
    help="Serve nobody but the account to which this machine is linked.",
)
@click.option("--once", is_flag=True, help="Serve one request, then exit.")
@_logging_options
@click.pass_obj
def serve(
    group_level: str | None,
    coordinator: str,
    models: tuple[str, ...],
    max_concurrent: int,
    private_only: bool,
    once: bool,
    verbose: bool,
    quiet: bool,
    log_level: str | None,
) -> int:
    """Serve in the foreground until a signal.

    The first SIGTERM or Ctrl-C finishes the accepted work, a second one aborts it.
    """
    configure(_level(verbose, quiet, log_level) or group_level or _level_from_environment())
    settings = serve_settings(coordinator, models, max_concurrent, os.environ, private_only=private_only, once=once)
    from agent.serve import serve as serve_until_signal

    return serve_until_signal(settings)


@darkbloom.command()
@_coordinator_option
@click.option("--force", is_flag=True, help="Link anew although this machine is linked.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@click.option(
    "--token-file",
    type=click.File(),
    help="Take a provider token from this file, - for standard input, instead of asking for one.",
)
def login(coordinator: str, force: bool, no_browser: bool, token_file: TextIO | None) -> None:
    """Link this machine to an account, which then earns for its work.

    Shows a code; whoever owns the account enters it in a browser.
    """
    from agent import login as linking

    settings = link_settings(coordinator, os.environ)
    if token_file is not None:
        linking.take_over(settings, token_file.read(linking.TOKEN_CHARACTERS_MAX + 1), force=force)
    else:
        linking.login(settings, force=force, open_browser=not no_browser)


@darkbloom.command()
@_coordinator_option
@click.option("--revoke", is_flag=True, help="Have the coordinator forget this machine's token too.")
def logout(coordinator: str, revoke: bool) -> None:
    """Forget this machine's link. What it does from its next connection on is not credited."""
    from agent import login as linking

    linking.logout(link_settings(coordinator, os.environ), revoke=revoke)


def main() -> NoReturn:
    """Run the command and exit with its code (provider agent, section 3.2)."""
    try:
        code = int(darkbloom.main(prog_name="darkbloom", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Abort:
        code = 130
    except StartError as error:
        click.echo(f"darkbloom: {error}", err=True)
        code = error.exit_code
    _exit(code)


def _exit(code: int) -> NoReturn:
    if "mlx.core" in sys.modules:
        # MLX finishes its last step on threads of its own, and taking the interpreter down beside them aborts.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _level(verbose: bool, quiet: bool, log_level: str | None) -> str | None:
    return log_level or ("error" if quiet else "debug" if verbose else None)


def _level_from_environment() -> str:
    level = os.environ.get("DARKBLOOM_LOG", "").lower()
    if level and level not in LEVELS:
        logging.getLogger(__name__).warning("DARKBLOOM_LOG=%r is not one of %s", level, ", ".join(LEVELS))
    return level if level in LEVELS else "info"
