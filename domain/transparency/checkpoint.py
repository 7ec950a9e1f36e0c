"""Checkpoints (C2SP tlog-checkpoint): the size and the root of the log at a moment, as the text of a signed note."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from domain.transparency import note
from domain.transparency.merkle import HASH_BYTES
from domain.transparency.note import MalformedNote, SignedNote, Signer

SIZE_MAX = 2**63 - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_TIME = re.compile(r"time (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})Z")


class Checkpoint(NamedTuple):
    """``signed_at`` stands in an extension line, so the signatures cover it."""

    origin: str
    size: int
    root: bytes
    signed_at: datetime

    def text(self) -> str:
        moment = self.signed_at.isoformat(timespec="microseconds").removesuffix("+00:00")
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\ntime {moment}Z\n"


def sign(checkpoint: Checkpoint, signers: Sequence[Signer]) -> SignedNote:
    return note.sign(checkpoint.text(), signers)


def read(signed: SignedNote) -> Checkpoint:
    """Raises MalformedNote when the note's text is not a checkpoint of this log's form."""
    lines = signed.text[:-1].split("\n")
    if len(lines) != 4:
        raise MalformedNote("a checkpoint is an origin, a size, a root and a time, a line each")
    origin, size, encoded, time_line = lines
    root = note.strict_base64(encoded)
    timed = _TIME.fullmatch(time_line)
    if not origin or not _DECIMAL.fullmatch(size) or int(size) > SIZE_MAX:
        raise MalformedNote("the second line of a checkpoint is the number of events that it covers")
    if root is None or len(root) != HASH_BYTES:
        raise MalformedNote("the third line of a checkpoint is 32 bytes in base64")
    if timed is None:
        raise MalformedNote("the fourth line of a checkpoint is its time in UTC")
    try:
        signed_at = datetime.fromisoformat(timed[1] + "+00:00")
    except ValueError:
        raise MalformedNote("the time of this checkpoint does not exist") from None
    return Checkpoint(origin, int(size), root, signed_at)


def split(text: str) -> Iterator[str]:
    """The notes in a file that holds one or several, one after the other, with or without empty lines between."""
    lines: list[str] = []
    signed = False
    for line in text.splitlines(keepends=True):
        if signed and not line.startswith("— "):
            yield "".join(lines)
            lines, signed = [], False
        if not lines and line == "\n":
            continue
        signed = signed or line.startswith("— ")
        lines.append(line)
    if lines:
        yield "".join(lines)
