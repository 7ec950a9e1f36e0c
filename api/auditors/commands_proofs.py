"""``darkbloomd audit verify``, ``export-events``, ``checkpoint``, ``prove`` and the checks of single proofs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
import msgspec
import psycopg

from api import bootstrap
from api.auditors.evidence import (
    TAMPERED,
    Tampered,
    Unreadable,
    existing_file,
    key_option,
    lines_of,
    read_checkpoints,
    read_keys,
    read_text,
    whole_file,
)
from api.command_line import data_dir_option, explained, settings_of
from api.public import proving
from api.public.ports import TransparencyLog
from domain.transparency import audit, export, proofs
from domain.transparency.audit import EarlierRejected, SplitView, Verdict
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.export import NotExportable
from domain.transparency.merkle import ProofRejected
from domain.transparency.proofs import ConsistencyProof, InclusionProof
from domain.transparency.tiles import TreeDamaged
from projections import transparency
from projections.checkpoints import CheckpointRefused

P = TypeVar("P", bound=msgspec.Struct)

new_file = click.Path(dir_okay=False, path_type=Path)

checkpoint_option = click.option(
    "--checkpoint",
    "checkpoint_files",
    type=existing_file,
    multiple=True,
    required=True,
    help="A file with one or more signed checkpoints; may be given several times.",
)


@click.command()
@click.argument("export_file", metavar="EXPORT", type=existing_file)
@checkpoint_option
@key_option
@click.option("--earlier", type=existing_file, help="An earlier export, or hashes that --save-hashes kept.")
@click.option("--save-hashes", type=new_file, help="Keep the leaf hashes of a good export in this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    export_file: Path,
    checkpoint_files: tuple[Path, ...],
    keys: tuple[str, ...],
    earlier: Path | None,
    save_hashes: Path | None,
    as_json: bool,
) -> None:
    """Check an export against signed checkpoints, without any database."""
    checkpoints = read_checkpoints(checkpoint_files, read_keys(keys), bootstrap.verify_signature)
    try:
        with ExitStack() as stack:
            known = _trusted_hashes(earlier, checkpoints, stack) if earlier else ()
            keep = _keeper(stack.enter_context(whole_file(save_hashes))) if save_hashes else _forget
            verdict = audit.verify(stack.enter_context(lines_of(export_file)), checkpoints, earlier=known, on_hash=keep)
            click.echo(msgspec.json.encode(verdict) if as_json else _in_words(verdict))
            if not verdict.ok:
                raise click.exceptions.Exit(TAMPERED)
    except SplitView as error:
        raise Tampered(str(error)) from None
    except EarlierRejected as error:
        raise Unreadable(str(error)) from None


@click.command(name="export-events")
@click.argument("file", type=new_file)
@data_dir_option
@explained
def export_events(file: Path, data_dir: Path | None) -> None:
    """Write every event that the tree covers to a file that 'verify' checks anywhere."""
    count = 0
    with bootstrap.database_of_command(settings_of(data_dir=data_dir)) as dsn:
        with psycopg.connect(dsn) as connection, whole_file(file) as out:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            try:
                size = transparency.tree_size(connection)
                for count, line in enumerate(export.lines(transparency.hashed_events(connection, 1, size))):  # noqa: B007
                    out.write(line)
            except (NotExportable, TreeDamaged) as error:
                raise click.ClickException(f"the log cannot be exported: {error}") from None
    click.echo(f"{count} events of a log of {size}", err=True)


@click.command()
@click.option("--out", type=new_file, help="Write it to this file instead of standard output.")
@click.option("--size", type=click.IntRange(1), help="The checkpoint of exactly this size instead of the newest.")
@click.option("--sign", is_flag=True, help="First sign everything that is in the log now; needs the key file.")
@data_dir_option
@explained
def checkpoint(out: Path | None, size: int | None, sign: bool, data_dir: Path | None) -> None:
    """Show a signed checkpoint from the database."""
    if sign:
        try:
            bootstrap.sign_now(settings_of(data_dir=data_dir))
        except (CheckpointRefused, TreeDamaged) as error:
            raise click.ClickException(f"nothing was signed: {error}") from None
    signed = _ask(data_dir, lambda log: proving.signed_checkpoint(log, size))
    if out is None:
        click.echo(signed, nl=False)
    else:
        out.write_text(signed, encoding="utf-8")


@click.command()
@click.option("--position", type=click.IntRange(1), required=True, help="The position of the event.")
@click.option("--size", type=click.IntRange(1), help="Prove it against the checkpoint of this size.")
@data_dir_option
@explained
def prove(position: int, size: int | None, data_dir: Path | None) -> None:
    """Print the inclusion proof of any event as JSON."""
    made = _ask(data_dir, lambda log: proving.prove_inclusion(log, position, size=size))
    click.echo(msgspec.json.encode(made))


@click.command(name="verify-inclusion")
@click.argument("proof", type=existing_file)
@checkpoint_option
@key_option
def verify_inclusion(proof: Path, checkpoint_files: tuple[Path, ...], keys: tuple[str, ...]) -> None:
    """Check one inclusion proof, without any database."""
    made = _read_proof(proof, InclusionProof)
    trusted = _of_size(read_checkpoints(checkpoint_files, read_keys(keys), bootstrap.verify_signature), made.size)
    try:
        event = proofs.check_inclusion(made, trusted)
    except ProofRejected as error:
        raise Tampered(str(error)) from None
    click.echo(f"ok: {event.topic} stands at position {event.position} of the log of {trusted.size} events")


@click.command(name="verify-consistency")
@click.argument("proof", type=existing_file)
@checkpoint_option
@key_option
def verify_consistency(proof: Path, checkpoint_files: tuple[Path, ...], keys: tuple[str, ...]) -> None:
    """Check that one checkpoint's log begins with an older one's, without any database."""
    made = _read_proof(proof, ConsistencyProof)
    checkpoints = read_checkpoints(checkpoint_files, read_keys(keys), bootstrap.verify_signature)
    old, new = _of_size(checkpoints, made.old_size), _of_size(checkpoints, made.new_size)
    try:
        proofs.check_consistency(made, old, new)
    except ProofRejected as error:
        raise Tampered(str(error)) from None
    click.echo(f"ok: the log of {new.size} events begins with the log of {old.size} events")


# --- verdicts --------------------------------------------------------------------------------------------------------


def _in_words(verdict: Verdict) -> str:
    if verdict.ok:
        return f"ok: {verdict.events} events, {verdict.covered} of them covered by a checkpoint; {verdict.reason}"
    if verdict.first_bad_position is not None:
        where = f"first bad position {verdict.first_bad_position}"
        if verdict.range is not None and verdict.range[0] < verdict.first_bad_position:
            where += f" (nothing vouches for those from {verdict.range[0]} on)"
    elif verdict.range is not None:
        where = f"the first bad position is between {verdict.range[0]} and {verdict.range[1]}"
    else:
        where = "no event is known to be bad"
    return f"tampered: {where}: {verdict.reason}"


# --- files -----------------------------------------------------------------------------------------------------------


def _trusted_hashes(earlier: Path, checkpoints: list[Checkpoint], stack: ExitStack) -> Iterator[bytes]:
    """The leaf hashes of an earlier copy, as far as a checkpoint vouches for them."""
    with lines_of(earlier) as lines:
        covered = audit.vouched(audit.hashes_of_copy(lines), checkpoints)
    return islice(audit.hashes_of_copy(stack.enter_context(lines_of(earlier))), covered)


def _keeper(out: BinaryIO) -> Callable[[bytes], object]:
    out.write(audit.HASHES_HEADER)
    return lambda hashed: out.write(hashed.hex().encode() + b"\n")


def _forget(_: bytes) -> None:
    """Keeps nothing."""


def _read_proof(path: Path, kind: type[P]) -> P:
    try:
        return msgspec.json.decode(read_text(path), type=kind)
    except msgspec.DecodeError as error:
        raise Unreadable(f"{path} is no such proof: {error}") from None


def _of_size(checkpoints: list[Checkpoint], size: int) -> Checkpoint:
    try:
        found = [checkpoint for checkpoint in audit.ordered(checkpoints) if checkpoint.size == size]
    except SplitView as error:
        raise Tampered(str(error)) from None
    if not found:
        raise Unreadable(
            f"the proof is for a log of {size} events; give the checkpoint of that size, "
            f"from GET /v1/transparency/checkpoint?size={size}"
        )
    return found[0]


# --- the database ----------------------------------------------------------------------------------------------------


def _ask(data_dir: Path | None, question: Callable[[TransparencyLog], Any]) -> Any:
    """Put a question to the log in the database."""

    async def ask(dsn: str) -> Any:
        @asynccontextmanager
        async def connect() -> AsyncGenerator[psycopg.AsyncConnection[tuple[Any, ...]], None]:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                yield connection

        return await question(bootstrap.transparency_log(connect))

    with bootstrap.database_of_command(settings_of(data_dir=data_dir)) as dsn:
        return asyncio.run(ask(dsn))
