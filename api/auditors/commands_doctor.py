"""``darkbloomd audit doctor``: every invariant of the books, in one look at a live database."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import psycopg

from api import bootstrap
from api.command_line import data_dir_option, explained, settings_of
from projections import transparency
from projections.audit import tree
from projections.doctor import Connection, Diagnosis, Finding, examine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Look at the newest N events only, which is quick on a long log.",
)
@data_dir_option
@explained
def doctor(as_json: bool, sample: int | None, data_dir: Path | None) -> None:
    """Check every invariant of the books. Exit code 1 when one is violated."""
    settings = settings_of(data_dir=data_dir)
    with bootstrap.database_of_command(settings) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        diagnosis = examine(connection, newest=sample, more={} if sample else {14: _against_the_tree})
    click.echo(_as_json(diagnosis) if as_json else _as_lines(diagnosis))
    if not diagnosis.healthy:
        raise SystemExit(1)


def _against_the_tree(connection: Connection) -> str | None:
    """Whether the events still are the leaves of the tree, and the tree the one that was signed."""
    found = tree.verify(connection, 1, transparency.tree_size(connection))
    if found.ok:
        return None
    where = f" at position {found.first_bad_position}" if found.first_bad_position else ""
    return f"the log and its Merkle tree differ{where}; see 'darkbloomd audit verify'"


def _as_json(diagnosis: Diagnosis) -> str:
    facts = {
        "healthy": diagnosis.healthy,
        "position": diagnosis.position,
        "events": diagnosis.events,
        "whole": diagnosis.whole,
        "invariants": [msgspec.to_builtins(finding) | {"first": _first(finding)} for finding in diagnosis.findings],
    }
    return msgspec.json.encode(facts).decode()


def _first(finding: Finding) -> dict[str, str | int] | None:
    first = finding.first
    return None if first is None else {"position": first.position, "subject": first.subject, "what": first.what}


def _as_lines(diagnosis: Diagnosis) -> str:
    lines = [_as_line(finding) for finding in diagnosis.findings]
    scope = "the whole log" if diagnosis.whole else "the newest part of the log"
    verdict = "the books are sound" if diagnosis.healthy else "THE BOOKS ARE NOT SOUND"
    return "\n".join(
        [*lines, f"{verdict}: read {diagnosis.events} events up to position {diagnosis.position}, {scope}"]
    )


def _as_line(finding: Finding) -> str:
    line = f"{finding.number:>2}  {finding.state:<14}  {finding.says}"
    if finding.first is not None:
        place = f"position {finding.first.position}, " if finding.first.position else ""
        return f"{line}\n    first of {finding.violations}: {place}{finding.first.subject}: {finding.first.what}"
    return f"{line}\n    because {finding.why}" if finding.why else line
