"""``darkbloomd audit trial-balance | statement | entry | search | holds``."""

from __future__ import annotations

from datetime import datetime

import click

from api.auditors.command_options import (
    Time,
    Usd,
    Where,
    books,
    cursor_option,
    from_events_option,
    json_option,
    limit_option,
    on_database,
    print_json,
    print_table,
    time_text,
)
from domain.money import format_usd
from projections.audit import entries
from projections.audit import holds as open_holds_of
from projections.audit import statement as statements
from projections.audit import trial_balance as balances
from projections.audit.instants import at_head, at_position, at_time, between, head_of


@click.command(name="trial-balance")
@click.option("--at", type=Time(), help="Everything up to this time, such as 2026-05-31T23:59:59.999999Z.")
@click.option("--position", type=click.IntRange(0), help="Everything up to this position of the log.")
@click.option("--basis", type=click.Choice(("recorded", "effective")), default="recorded", show_default=True)
@from_events_option
@json_option
@on_database
def trial_balance(
    at: datetime | None,
    position: int | None,
    basis: str,
    from_events: bool,
    as_json: bool,
    where: Where,
) -> None:
    """Debits and credits of every account, at any past instant. Ends with code 1 when they differ."""
    if basis == "recorded" and at is not None and position is not None:
        raise click.UsageError("--at and --position exclude each other, except with --basis effective")
    with books(where, from_events=from_events) as (connection, sources):
        known = at_head(connection) if position is None else at_position(connection, position)
        if basis == "effective":
            found = balances.effective(connection, at or head_of(connection).now, known, sources)
        else:
            found = balances.recorded(connection, at_time(connection, at) if at else known, sources)
    if as_json:
        print_json(found)
    else:
        _print_trial_balance(found)
    if not found.balanced:
        raise click.ClickException("debits and credits differ; run 'darkbloomd audit trial-balance --from-events'")


def _print_trial_balance(found: balances.TrialBalance) -> None:
    finality = "final" if found.final else "not final: more may be recorded"
    click.echo(f"at {time_text(found.at)}, position {found.position}, basis {found.basis}, {finality}")
    rows = [
        [line.code, line.name, line.account_class]
        + [format_usd(amount) for amount in (line.debit_micro_usd, line.credit_micro_usd, line.balance_micro_usd)]
        for line in found.lines
    ]
    total = ["", "total", ""]
    total += [format_usd(found.total_debit_micro_usd), format_usd(found.total_credit_micro_usd), ""]
    print_table(("code", "account", "class", "debit USD", "credit USD", "balance USD"), [*rows, total], right=(3, 4, 5))
    click.echo("balanced" if found.balanced else "NOT BALANCED")
    click.echo(f"committed holds {format_usd(found.committed_holds_micro_usd)} USD")
    click.echo(f"sha256 {found.trial_balance_sha256}")


@click.command()
@click.argument("account")
@click.option("--from", "start", type=Time(), help="Entries after this time.")
@click.option("--to", "end", type=Time(), help="Entries up to this time.")
@limit_option
@cursor_option
@from_events_option
@json_option
@on_database
def statement(
    account: str,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    cursor: str,
    from_events: bool,
    as_json: bool,
    where: Where,
) -> None:
    """What moved an account (or a machine that nobody claimed): opening balance, entries, closing balance."""
    with books(where, from_events=from_events) as (connection, sources):
        stretch = between(connection, start, end)
        found = statements.statement(connection, account, stretch, sources, cursor=cursor, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [
        [
            str(line.position),
            time_text(line.recorded_at),
            line.kind,
            line.reference,
            format_usd(line.amount_micro_usd),
            format_usd(line.balance_after_micro_usd),
            format_usd(line.withdrawable_after_micro_usd),
        ]
        for line in found.lines
    ]
    _print_standing("opening", found.opening)
    heads = ("position", "recorded", "kind", "reference", "amount USD", "balance USD", "withdrawable USD")
    print_table(heads, rows, right=(0, 4, 5, 6))
    _print_standing("closing", found.closing)
    _print_next(found.next_cursor)


def _print_standing(word: str, standing: statements.Standing) -> None:
    click.echo(
        f"{word} balance {format_usd(standing.balance_micro_usd)} USD at position {standing.position}, "
        f"held {format_usd(standing.held_micro_usd)}, withdrawable {format_usd(standing.withdrawable_micro_usd)}"
    )


def _print_next(cursor: str | None) -> None:
    if cursor:
        click.echo(f"more with --cursor {cursor}")


@click.command()
@click.argument("id_or_key")
@json_option
@on_database
def entry(id_or_key: str, as_json: bool, where: Where) -> None:
    """One journal entry with what caused it and what corrects it, by its id or key (settle:<job id>)."""
    with books(where) as (connection, _):
        found = entries.entry(connection, id_or_key)
    if as_json:
        print_json(found)
        return
    posted = found.entry
    click.echo(f"entry {posted.entry_id} ({posted.entry_key}), position {posted.position}, kind {posted.kind}")
    click.echo(f"recorded {time_text(posted.recorded_at)}, effective {time_text(posted.effective_at)}")
    click.echo(f"by {found.envelope.actor.kind} {found.envelope.actor.id}".rstrip())
    _print_postings([posted])
    for cause in found.causing_events:
        click.echo(f"caused by position {cause.position}: {cause.topic} {cause.originator_id}")
    for correction in found.corrections:
        click.echo(f"corrected by adjustment {correction.adjustment_id} ({correction.status})")


def _print_postings(found: list[entries.Entry]) -> None:
    rows = [
        [
            str(one.position),
            one.entry_key,
            f"{posting.code} {posting.name}",
            posting.sub_account,
            format_usd(posting.debit_micro_usd) if posting.debit_micro_usd else "",
            format_usd(posting.credit_micro_usd) if posting.credit_micro_usd else "",
        ]
        for one in found
        for posting in one.postings
    ]
    print_table(("position", "entry", "account", "sub-account", "debit USD", "credit USD"), rows, right=(0, 4, 5))


@click.command()
@click.option("--kind", help="Such as settlement, admin_credit or adjustment.")
@click.option("--account", help="The sub-account of a posting.")
@click.option("--code", help="An account of the chart, such as 2100.")
@click.option("--reference", help="The grant, the job, or the papers of an adjustment.")
@click.option("--from", "start", type=Time(), help="Entries after this time.")
@click.option("--to", "end", type=Time(), help="Entries up to this time.")
@click.option("--min-usd", type=Usd(), default=0, help="A posting of at least this amount.")
@click.option("--max-usd", type=Usd(), help="A posting of at most this amount.")
@limit_option
@cursor_option
@from_events_option
@json_option
@on_database
def search(
    kind: str | None,
    account: str | None,
    code: str | None,
    reference: str | None,
    start: datetime | None,
    end: datetime | None,
    min_usd: int,
    max_usd: int | None,
    limit: int,
    cursor: str,
    from_events: bool,
    as_json: bool,
    where: Where,
) -> None:
    """Entries with a posting that is all that is asked for, oldest first."""
    filters = entries.Filters(
        kind=kind,
        account=account,
        code=code,
        reference=reference,
        least_micro_usd=min_usd,
        most_micro_usd=entries.AMOUNT_MAX if max_usd is None else max_usd,
    )
    with books(where, from_events=from_events) as (connection, sources):
        stretch = between(connection, start, end)
        found = entries.search(connection, stretch, filters, sources, cursor=cursor, limit=limit)
    if as_json:
        print_json(found)
        return
    _print_postings(found.entries)
    _print_next(found.next_cursor)


@click.command()
@click.option("--older-than-seconds", type=click.IntRange(0, 10**9), default=0, show_default=True)
@limit_option
@from_events_option
@json_option
@on_database
def holds(
    older_than_seconds: int,
    limit: int,
    from_events: bool,
    as_json: bool,
    where: Where,
) -> None:
    """The open holds, oldest first, with job and account."""
    with books(where, from_events=from_events) as (connection, sources):
        found = open_holds_of.open_holds(connection, sources, older_than_seconds=older_than_seconds, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [
        [str(hold.age_seconds), hold.account_id, hold.hold_id, hold.job_id, format_usd(hold.amount_micro_usd)]
        for hold in found.holds
    ]
    print_table(("age s", "account", "hold", "job", "amount USD"), rows, right=(0, 4))
    click.echo(f"{found.count} open holds, {format_usd(found.total_micro_usd)} USD, at position {found.position}")
