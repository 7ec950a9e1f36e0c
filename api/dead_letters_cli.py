"""``darkbloomd dead-letters``: what the scheduler gave up, to look at, to run again or to drop.

They are with the scheduler's broker, which without RabbitMQ is in the memory of ``darkbloomd up``; so a gateway is
asked, over the same HTTP as everybody's and with an admin's key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import click
import httpx
import msgspec

from api.auditors.command_options import admin_key_option, json_option, print_json, print_table
from api.command_line import explained, settings_of
from api.operators.dead_letters import PATH

ANSWER_SECONDS_MAX = 60.0


class Gateway(NamedTuple):
    """A gateway to ask, and the admin key to ask it with."""

    url: str
    admin_key: str

    def ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        """Raises ClickException when it does not answer, or refuses."""
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        try:
            answer = httpx.request(
                method, self.url.rstrip("/") + path, headers=headers, timeout=ANSWER_SECONDS_MAX, **how
            )
            told = msgspec.json.decode(answer.content, type=dict[str, Any])
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError):
            raise click.ClickException(f"no gateway answers at {self.url}; name one with --gateway") from None
        if answer.status_code != httpx.codes.OK:
            raise click.ClickException(told.get("error", {}).get("message", f"it answered {answer.status_code}"))
        return told


def _at_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command its ``gateway``."""

    @wraps(command)
    def asked(*, gateway_url: str | None, admin_key: str, **options: Any) -> None:
        settings = settings_of()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        command(gateway=Gateway(gateway_url or f"http://{host}:{settings.port}", admin_key), **options)

    where = click.option(
        "--gateway",
        "gateway_url",
        metavar="URL",
        help="A gateway; left out: the one at DARKBLOOM_HOST and DARKBLOOM_PORT.",
    )
    return where(admin_key_option(explained(asked)))


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the body that says which dead letters it is about."""

    @wraps(command)
    def meant(*, ids: Sequence[str], every: bool, **options: Any) -> None:
        if every is bool(ids):
            raise click.UsageError("name dead letters by their ids, or give --all")
        command(body={"all": True} if every else {"ids": list(ids)}, **options)

    return click.argument("ids", nargs=-1)(click.option("--all", "every", is_flag=True, help="All of them.")(meant))


@click.group(name="dead-letters")
def dead_letters() -> None:
    """What the scheduler gave up after its last try."""


@dead_letters.command(name="list")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many.")
@json_option
@_at_gateway
def list_dead_letters(gateway: Gateway, limit: int, as_json: bool) -> None:
    """List them, the newest first."""
    told = gateway.ask("GET", PATH, params={"limit": limit})
    if as_json:
        print_json(told)
        return
    letters = told["dead_letters"]
    if not letters:
        click.echo("the scheduler gave up nothing")
        return
    heads = ("id", "queue", "actor", "request", "attempt", "queued")
    print_table(heads, [_row(letter) for letter in letters], right=(4,))
    if told["total"] > len(letters):
        click.echo(f"and {told['total'] - len(letters)} older ones; see --limit")


@dead_letters.command()
@_chosen
@json_option
@_at_gateway
def replay(gateway: Gateway, body: dict[str, Any], as_json: bool) -> None:
    """Run dead letters again, those of IDS or all. What was done already is not done twice."""
    _say(gateway.ask("POST", f"{PATH}/replay", json=body), as_json)


@dead_letters.command()
@_chosen
@json_option
@_at_gateway
def drop(gateway: Gateway, body: dict[str, Any], as_json: bool) -> None:
    """Forget dead letters, those of IDS or all."""
    _say(gateway.ask("POST", f"{PATH}/drop", json=body), as_json)


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    attempt = letter["attempt"]
    return (
        letter["id"],
        letter["queue"],
        letter["actor"],
        letter["request_id"] or "-",
        "-" if attempt is None else str(attempt),
        letter["queued_at"],
    )


def _say(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    for done, count in told.items():
        click.echo(f"{done}: {count}")
