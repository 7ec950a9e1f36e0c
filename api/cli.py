"""``darkbloomd``: the coordinator's command line."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import psycopg

from adapters.postgres import api_keys, credentials, migrate, roles
from adapters.settings import Settings
from api import bootstrap, server
from api.audit_cli import audit
from api.command_line import data_dir_option, explained, settings_of
from api.dead_letters_cli import dead_letters
from api.fleet_cli import fleet
from domain.eventsourced import Actor
from domain.keys import ROLES, SCOPES, AccountLimits, Role, Scope
from domain.ledger import GrantCredit, OpenAccount
from domain.money import NotAnAmount, format_usd, parse_usd

ADMIN = Actor("admin", "operator")


def _start_logging() -> None:
    level = os.environ.get("DARKBLOOM_LOG", "info").upper()
    if level not in logging.getLevelNamesMapping():
        raise click.ClickException("DARKBLOOM_LOG must be debug, info, warning or error")
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    # These log frames, statements or messages, all of which may carry what must not be logged.
    for name in ("uvicorn", "websockets", "psycopg", "psycopg.pool", "httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs a dozen lines and a traceback for each failed connection, which we report in one.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    for name in ("dramatiq", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level]))


@click.group()
@click.version_option(version("darkbloom"), message="darkbloomd %(version)s")
def main() -> None:
    """Darkbloom's coordinator: gateway, scheduler and ledger."""


@main.command()
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (default 8080; 0 picks a free one).")
@data_dir_option
@explained
def up(host: str | None, port: int | None, data_dir: Path | None) -> None:
    """Run everything in one process, with its own database unless one is configured."""
    _start_logging()
    settings = settings_of(host=host, port=port, data_dir=data_dir)
    _serve(settings, bootstrap.run_everything)


@main.command()
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (default 8080; 0 picks a free one).")
@explained
def serve(host: str | None, port: int | None) -> None:
    """Run a gateway: the HTTP API and the machines' sockets. Schedulers run with 'darkbloomd schedule'."""
    _start_logging()
    settings = _need_servers(settings_of(host=host, port=port))
    _serve(settings, bootstrap.run_gateway)


@main.command()
@explained
def schedule() -> None:
    """Run a scheduler worker for gateways in other processes."""
    _start_logging()
    settings = _need_servers(settings_of())
    bootstrap.run_scheduler(settings, _until_signal("scheduler"))


@main.command()
@explained
def project() -> None:
    """Run the projections that follow the event log."""
    _start_logging()
    settings = settings_of()
    if not settings.database_url:
        raise click.ClickException(
            "set DARKBLOOM_DATABASE_URL; 'darkbloomd up' runs the projections of its own database"
        )
    bootstrap.run_projections(settings, _until_signal("projections"))


@main.command(name="migrate")
@click.option("--application-role", metavar="NAME", help="Give this role what a running coordinator needs.")
@click.option("--auditor-role", metavar="NAME", help="Give this role the right to read, but no secrets.")
@data_dir_option
@explained
def migrate_command(application_role: str | None, auditor_role: str | None, data_dir: Path | None) -> None:
    """Bring the database to this release's schema, and give roles their rights on it."""
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database(settings) as dsn:
        migrate.upgrade(dsn)
        roles.grant(dsn, application=application_role, auditor=auditor_role)
    click.echo("the database is up to date")


@main.command(name="rotate-sealing-key")
@data_dir_option
@explained
def rotate_sealing_key(data_dir: Path | None) -> None:
    """Make a new key for consumers to seal to. The present one stays valid for 24 hours."""
    key = bootstrap.rotate_sealing_key(settings_of(data_dir=data_dir))
    click.echo(f"requests are sealed to {key.kid} from now on")


@main.group()
def keys() -> None:
    """API keys of consumers, auditors and admins."""


@keys.command(name="create")
@click.option("--account", help="The account's id, opened if it is new; without it one is made up.")
@click.option("--credit", default="0", metavar="USD", help="Promotional credit to grant, such as 5 or 2.50.")
@click.option("--name", default="", help="A name for the key.")
@click.option("--role", type=click.Choice(ROLES), default="consumer", show_default=True)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    help="What a consumer's key may do; give it twice for both (default inference).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the key alone.")
@data_dir_option
@explained
def create_key(
    account: str | None,
    credit: str,
    name: str,
    role: Role,
    scopes: tuple[Scope, ...],
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Make an API key. Stdout carries the key alone; it is not shown again."""
    try:
        amount = parse_usd(credit)
    except NotAnAmount as error:
        raise click.BadParameter(str(error), param_hint="--credit") from None
    if scopes and role != "consumer":
        raise click.BadParameter(
            f"only a consumer's key has scopes; leave it out with --role {role}", param_hint="--scope"
        )
    account_id = account or f"acct_{secrets.token_hex(12)}"
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn, bootstrap.ledger_writer(dsn, settings) as writer:
        with psycopg.connect(dsn, autocommit=True) as connection:
            writer.execute(OpenAccount(actor=ADMIN, correlation_id=account_id, account_id=account_id))
            if amount:
                reference = secrets.token_hex(16)
                writer.execute(
                    GrantCredit(
                        actor=ADMIN,
                        correlation_id=reference,
                        account_id=account_id,
                        amount_micro_usd=amount,
                        reference=reference,
                    )
                )
            key = credentials.create_api_key(connection, account_id, name[:64], role, scopes)
    if as_json:
        facts = {
            "api_key": key.secret,
            "key_id": key.key_id,
            "account_id": account_id,
            "role": role,
            "credit_usd": format_usd(amount),
        }
        click.echo(json.dumps(facts))
        return
    click.echo(key.secret)
    click.echo(f"account {account_id}, key {key.key_id}, credit {format_usd(amount)} USD", err=True)


@keys.command(name="revoke")
@click.argument("key_or_id")
@data_dir_option
@explained
def revoke_key(key_or_id: str, data_dir: Path | None) -> None:
    """Revoke a key by its id (key_…) or by the key itself. It holds at once."""
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        if not credentials.revoke_api_key(connection, key_or_id):
            raise click.ClickException("there is no active key like that")
    click.echo("revoked")


@main.group()
def accounts() -> None:
    """Accounts and their limits."""


@accounts.command(name="limit")
@click.option("--account", required=True, help="The account's id.")
@click.option(
    "--requests-per-second", type=click.FloatRange(0), help="0 lifts the limit; left out: as in the settings."
)
@click.option("--burst", type=click.IntRange(1), help="Requests at once.")
@click.option("--tokens-per-minute", type=click.IntRange(0), help="0 lifts the limit; left out: as in the settings.")
@data_dir_option
@explained
def limit_account(
    account: str,
    requests_per_second: float | None,
    burst: int | None,
    tokens_per_minute: int | None,
    data_dir: Path | None,
) -> None:
    """Set the rate limits of one account, all of them at once. They hold from the next request on."""
    limits = AccountLimits(requests_per_second, burst, tokens_per_minute)
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        api_keys.set_account_limits(connection, account, limits)
    click.echo("set")


@main.group(name="provider-tokens")
def provider_tokens() -> None:
    """Tokens that link a machine to the account it earns for."""


@provider_tokens.command(name="create")
@click.option("--account", required=True, help="The account that will earn.")
@data_dir_option
@explained
def create_provider_token(account: str, data_dir: Path | None) -> None:
    """Make a token for an agent's auth_token file. Stdout carries the token alone; it is not shown again."""
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn, bootstrap.ledger_writer(dsn, settings) as writer:
        with psycopg.connect(dsn, autocommit=True) as connection:
            writer.execute(OpenAccount(actor=ADMIN, correlation_id=account, account_id=account))
            token = credentials.create_provider_token(connection, account)
    click.echo(token)


@main.command()
@click.option("--prompt", default="What is a hold?", help="What to ask the model.")
@click.option("--model-path", type=click.Path(path_type=Path), default=Path("models/darkbloom-tiny"))
@explained
def demo(prompt: str, model_path: Path) -> None:
    """Run the whole system once: one paid chat completion, then the books."""
    from api.demo import DemoFailed, run_demo

    try:
        run_demo(prompt, model_path)
    except DemoFailed as error:
        raise click.ClickException(str(error)) from None


main.add_command(audit)
main.add_command(dead_letters)
main.add_command(fleet)


def _serve(settings: Settings, run: Callable[[Settings, bootstrap.Serve], None]) -> None:
    bound = server.bind(settings.host, settings.port)
    host, port = bound.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    settings = settings.model_copy(update={"internal_url": settings.internal_url or url})
    mode = ", development mode: prompts go to machines without proven hardware" if settings.development else ""

    def on_ready() -> None:
        click.echo(f"darkbloomd is ready on {url}{mode}")

    run(settings, lambda app: server.serve(app, bound, drain_seconds=settings.drain_seconds, on_ready=on_ready))


def _need_servers(settings: Settings) -> Settings:
    missing = [
        name
        for name, value in (
            ("DARKBLOOM_DATABASE_URL", settings.database_url),
            ("DARKBLOOM_BROKER_URL", settings.broker_url),
            ("DARKBLOOM_INTERNAL_SECRET", settings.internal_secret),
        )
        if not value
    ]
    if missing:
        raise click.ClickException(f"set {', '.join(missing)}; 'darkbloomd up' needs none of them")
    return settings


def _until_signal(what: str) -> Callable[[], None]:
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())

    def wait() -> None:
        click.echo(f"darkbloomd {what} is ready")
        stop.wait()

    return wait


if __name__ == "__main__":
    main()
