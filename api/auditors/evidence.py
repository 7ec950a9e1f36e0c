"""Reads what an auditor brings: checkpoints, public keys, exports and earlier copies. Nothing here needs a database."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from domain.transparency import checkpoint, export, note
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.note import MalformedNote, NotSignedByKey, SignatureInvalid, VerifierKey, VerifySignature

TAMPERED = 1
UNREADABLE = 2


existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)

key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    help="A public key of the log, or a file of them; without one, signatures are not checked.",
)


class Unreadable(click.ClickException):
    """What was given cannot serve as evidence, for or against."""

    exit_code = UNREADABLE


class Tampered(click.ClickException):
    """The evidence shows that something was changed."""

    exit_code = TAMPERED


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path} cannot be read: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not text"


def read_keys(given: Sequence[str]) -> list[VerifierKey]:
    """Keys as such, or files that hold one at the beginning of each line, as 'darkbloomd audit keys' prints them."""
    found: list[VerifierKey] = []
    for text in given:
        lines = read_text(Path(text)).splitlines() if Path(text).is_file() else [text]
        for line in lines:
            try:
                found += [note.parse_verifier_key(word) for word in line.split()[:1]]
            except ValueError as error:
                raise Unreadable(f"--key {text[:80]}: {error}") from None
    return found


def read_checkpoints(
    paths: Sequence[Path], keys: Sequence[VerifierKey], verify_signature: VerifySignature
) -> list[Checkpoint]:
    """The checkpoints in some files, each of which may hold several. With keys, each must be signed by one of them."""
    found: list[Checkpoint] = []
    for path in paths:
        texts = list(checkpoint.split(read_text(path)))
        if not texts:
            raise Unreadable(f"{path} holds no checkpoint")
        for text in texts:
            try:
                signed = note.parse(text)
                found.append(checkpoint.read(signed))
                if keys and found[-1].origin not in {key.name for key in note.verify(signed, keys, verify_signature)}:
                    raise Unreadable(f"{path}: the checkpoint is of another log than the key")
            except MalformedNote as error:
                raise Unreadable(f"{path} holds something that is no checkpoint: {error}") from None
            except SignatureInvalid as error:
                raise Tampered(f"{path}: {error}") from None
            except NotSignedByKey:
                raise Unreadable(f"{path}: none of the keys given has signed the checkpoint") from None
    if len({made.origin for made in found}) > 1:
        raise Unreadable("the checkpoints are of different logs")
    if not keys:
        click.echo("no --key was given: signatures are not checked, the checkpoints are taken as they are", err=True)
    return found


@contextmanager
def lines_of(path: Path) -> Generator[Generator[bytes, None, None], None, None]:
    """The lines of a file, one at a time; one that is longer than any line may be comes in pieces."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {reason_of(error)}") from None
    with file:
        yield _lines(file, path)


def _lines(file: BinaryIO, path: Path) -> Generator[bytes, None, None]:
    while True:
        try:
            line = file.readline(export.LINE_BYTES_MAX)
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {reason_of(error)}") from None
        if not line:
            return
        yield line


@contextmanager
def whole_file(path: Path) -> Generator[BinaryIO, None, None]:
    """A file that appears under its name when it is complete, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(path)
    except OSError as error:
        raise Unreadable(f"{path} cannot be written: {reason_of(error)}") from None
    finally:
        part.unlink(missing_ok=True)
