"""``darkbloomd fleet``: which machines can get work, why the others cannot, and what routing would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from api import bootstrap
from api.auditors.command_options import Where, json_option, on_database, print_json, print_table
from api.command_line import settings_of
from api.ports import MachineRecord
from api.providers.verdict import cost_json, details_of, reason_json, standing_in, status_of, summary_of
from domain.catalog import Catalog
from domain.routing import Assessment, Choice, Demand, Standing
from domain.routing.narrowing import SHAPES

USUAL_PROMPT_TOKENS, USUAL_OUTPUT_TOKENS = SHAPES[1]


@click.group(invoke_without_command=True)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many machines."
)
@json_option
@on_database
@click.pass_context
def fleet(context: click.Context, where: Where, limit: int, as_json: bool) -> None:
    """List the machines, and for each that can get no work every reason with what to do."""
    if context.invoked_subcommand is not None:
        return
    settings = settings_of(**where._asdict())
    size_of = Catalog.built_in(development=settings.development).size_of
    with bootstrap.fleet_survey(settings) as survey:
        policy, queues = survey.policy, survey.queues()
        judged = [(record, standing_in(record, policy, size_of=size_of)) for record in survey.machines(limit)]
    if as_json:
        machines = [
            {"account_id": record.account_id} | summary_of(record, standing) | details_of(record, standing, policy)
            for record, standing in judged
        ]
        print_json({"providers": machines, "queues": [queue._asdict() for queue in queues]})
        return
    if not judged:
        click.echo("no machine ever connected")
        return
    heads = ("machine", "account", "status", "routable", "in flight", "trust", "models", "last seen")
    print_table(heads, [_machine_row(*one) for one in judged], right=(4,))
    for line in (line for one in judged for line in _reason_lines(*one)):
        click.echo(line)
    for queue in queues:
        pace = f"; a request lately took a slot for {queue.slot_seconds:.1f} s" if queue.slot_seconds else ""
        waiting = f"{queue.requests} waiting (accounts: {queue.accounts}), the oldest for {queue.oldest_seconds:.0f} s"
        click.echo(f"queue of {queue.model}: {waiting}{pace}")


@fleet.command()
@click.argument("model")
@click.option("--prompt-tokens", type=click.IntRange(0), default=USUAL_PROMPT_TOKENS, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=USUAL_OUTPUT_TOKENS, show_default=True)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many machines."
)
@json_option
@on_database
def explain(where: Where, model: str, prompt_tokens: int, output_tokens: int, limit: int, as_json: bool) -> None:
    """Show what a request for MODEL would cost on each machine, term by term, and which one would get it.

    The cheapest come first, then those that cannot take it, with the gates that are closed.
    """
    settings = settings_of(**where._asdict())
    catalog = Catalog.built_in(development=settings.development)
    size_gb = catalog.size_of(model)
    if size_gb is None:
        raise click.ClickException(f"the network does not know the model {model!r}, so nobody can ask for it")
    demand = Demand(model, prompt_tokens, output_tokens, size_gb=size_gb, kind=catalog.kind_of(model))
    with bootstrap.fleet_survey(settings) as survey:
        assessed = survey.assess(demand)
        choices = survey.choices(demand)
    if as_json:
        print_json(_explained(demand, assessed[:limit], choices))
        return
    if not assessed:
        click.echo(f"no connected machine offers {model}")
        return
    click.echo(f"a request for {model}: {prompt_tokens} tokens of prompt, {output_tokens} of answer; costs in ms")
    _print_costs(assessed[:limit])
    if len(assessed) > limit:
        click.echo(f"and {len(assessed) - limit} more machines; see --limit")
    for gateway_id, choice in choices.items():
        click.echo(f"at gateway {gateway_id[:8]} {_choice_text(choice, survey.policy.near_tie_ms)}")


def _machine_row(record: MachineRecord, standing: Standing) -> tuple[str, ...]:
    machine = record.snapshot
    seen = summary_of(record, standing)
    in_flight = max((load.requests_all for load in record.loads.values()), default=0)
    return (
        record.machine_id[:12],
        record.account_id or "-",
        status_of(machine),
        "yes" if seen["routable"] else "to owner" if seen["routable_for_owner"] else "no",
        f"{in_flight}/{machine.capacity}" if machine else "-",
        seen["trust_level"],
        ", ".join(record.models),
        seen["last_seen_at"],
    )


def _reason_lines(record: MachineRecord, standing: Standing) -> list[str]:
    name = record.machine_id[:12]
    lines = [f"{name} {reason}: {reason.says}; {reason.fix}" for reason in standing.reasons]
    return lines + [
        f"{name} {model.model} {reason}: {reason.says}; {reason.fix}"
        for model in standing.models
        for reason in model.reasons
    ]


def _print_costs(assessed: Sequence[Assessment]) -> None:
    """A row a machine; terms that are nothing for all of them are left out."""
    costs = [cost_json(one.cost) for one in assessed]
    names = [name for name in costs[0] if any(cost[name] for cost in costs)]
    rows = [
        (
            one.candidate.snapshot.machine_id[:12],
            f"{one.candidate.load.requests_all}/{one.candidate.snapshot.capacity}",
            *(str(cost[name]) for name in names),
            ", ".join(one.reasons) or "-",
        )
        for one, cost in zip(assessed, costs, strict=True)
    ]
    print_table(("machine", "in flight", *names, "not eligible"), rows, right=range(1, len(names) + 2))


def _choice_text(choice: Choice | None, near_tie_ms: float) -> str:
    if choice is None:
        return "it would wait"
    machine_id = choice.candidate.snapshot.machine_id[:12]
    if choice.near_ties == 1:
        return f"it would go to {machine_id}, with no other within {near_tie_ms:.0f} ms of it"
    return (
        f"it would go to {machine_id}, of {choice.near_ties} machines within {near_tie_ms:.0f} ms of the cheapest: "
        "the shortest queue, then the fewest requests, then chance"
    )


def _explained(demand: Demand, assessed: Sequence[Assessment], choices: Mapping[str, Choice | None]) -> dict[str, Any]:
    return {
        "model": demand.model,
        "prompt_tokens": demand.prompt_tokens,
        "output_tokens": demand.output_tokens,
        "candidates": [
            {
                "id": one.candidate.snapshot.machine_id,
                "gateway_id": one.candidate.snapshot.gateway_id,
                "account_id": one.candidate.snapshot.account_id,
                "eligible": not one.reasons,
                "reasons": [reason_json(reason) for reason in one.reasons],
                "requests_in_flight": one.candidate.load.requests_all,
                "capacity": one.candidate.snapshot.capacity,
                "cost_ms": cost_json(one.cost),
            }
            for one in assessed
        ],
        "choices": [
            {
                "gateway_id": gateway_id,
                "id": choice.candidate.snapshot.machine_id if choice else None,
                "near_ties": choice.near_ties if choice else 0,
            }
            for gateway_id, choice in choices.items()
        ],
    }
