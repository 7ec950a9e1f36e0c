"""Checks an export of the log against checkpoints, line by line and without the database.

Three kinds of evidence name a bad position. A line that contradicts itself, its place or its own leaf hash is bad where
it stands. A line that differs from an earlier copy, which a checkpoint vouches for, is bad where it stands. A history
that was rewritten without a contradiction is betrayed by the root of the next checkpoint, and lies after the last
checkpoint whose root is right.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from uuid import UUID

import msgspec

from domain.transparency import export
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.export import MalformedLine, Summary
from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import HASH_BYTES, CompactRange

HASHES_HEADER = b"darkbloom leaf hashes\n"
"""The first line of a file of leaf hashes; each further line is one hash in hex."""

AGGREGATES_MAX = 100_000
"""How many aggregates' versions are remembered at a time; memory stays flat however long the log is."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an export.

    ``covered`` is the number of events, from the first on, that a checkpoint vouches for. ``first_bad_position`` is the
    first one that is shown to be bad, or null. What was rewritten without a contradiction may begin before it, but
    never before the first position of ``range``: a checkpoint or the earlier copy vouches for all that stands there.
    """

    ok: bool
    events: int
    covered: int
    reason: str
    first_bad_position: int | None = None
    range: tuple[int, int] | None = None


class SplitView(ValueError):
    """Two checkpoints contradict each other: the log has shown two histories."""


class EarlierRejected(ValueError):
    """The earlier copy cannot serve as evidence."""


class _Bad(Exception):
    """``position`` is bad, or some position up to ``upto`` is."""

    def __init__(self, reason: str, *, position: int | None = None, upto: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position
        self.upto = position if upto is None else upto


def ordered(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """By size, one of each size.

    Raises:
        SplitView: two are of one size and have different roots.
    """
    by_size: dict[int, Checkpoint] = {}
    for checkpoint in checkpoints:
        known = by_size.setdefault(checkpoint.size, checkpoint)
        if (known.origin, known.root) != (checkpoint.origin, checkpoint.root):
            raise SplitView(f"two checkpoints of size {checkpoint.size} have different roots: keep both as evidence")
    return [by_size[size] for size in sorted(by_size)]


def verify(
    lines: Iterable[bytes],
    checkpoints: Sequence[Checkpoint],
    *,
    earlier: Iterable[bytes] = (),
    on_hash: Callable[[bytes], object] = lambda _: None,
) -> Verdict:
    """Check an export. ``earlier`` are leaf hashes from position 1 on that ``vouched`` has let through;
    ``on_hash`` gets the leaf hash of each good event.

    Raises:
        SplitView: the checkpoints contradict each other.
    """
    run = _Run(ordered(checkpoints), iter(earlier), on_hash)
    try:
        run.follow(iter(lines))
    except _Bad as bad:
        first = run.vouched + 1
        return Verdict(
            ok=False,
            events=run.tree.size,
            covered=run.covered,
            reason=bad.reason,
            first_bad_position=first if bad.upto == first else bad.position,
            range=None if bad.upto is None else (first, bad.upto),
        )
    tail = run.tree.size - run.covered
    reason = f"the {tail} events after the last checkpoint are covered by none" if tail else "every event is covered"
    return Verdict(ok=True, events=run.tree.size, covered=run.covered, reason=reason)


class _Run:
    """One pass over an export."""

    def __init__(
        self, checkpoints: list[Checkpoint], earlier: Iterator[bytes], on_hash: Callable[[bytes], object]
    ) -> None:
        self.tree = CompactRange()
        self.covered = 0
        self._known = 0
        self._checkpoints = checkpoints
        self._earlier = earlier
        self._on_hash = on_hash
        self._traces = _Traces()
        self._trace: int | None = None

    @property
    def vouched(self) -> int:
        """How many events, from the first on, are known to be as they were."""
        return max(self.covered, self._known)

    def follow(self, lines: Iterator[bytes]) -> None:
        digest = hashlib.sha256()
        self._meet_checkpoint()
        for line in lines:
            summary = export.parse_summary(line) if line.startswith(b'{"count"') else None
            if summary is not None:
                if next(lines, None) is not None:
                    raise _Bad("something stands after the last line")
                self._end(summary, digest.hexdigest())
                return
            self._take(line)
            digest.update(line)
        position = self.tree.size + 1
        raise _Bad(f"the export ends without its last line, after position {position - 1}", position=position)

    def _take(self, line: bytes) -> None:
        position = self.tree.size + 1
        try:
            event, claimed = export.parse_line(line)
        except MalformedLine as error:
            raise _Bad(f"line {position} is damaged: {error}", position=position) from None
        if event.position != position:
            what = "is missing or out of order" if event.position > position else "is not what stands in its place"
            raise _Bad(f"position {position} {what}: position {event.position} stands there", position=position)
        hashed = export.hash_of(event)
        if hashed != claimed:
            raise _Bad(
                f"the event at position {position} does not have the hash that the tree holds", position=position
            )
        known = next(self._earlier, None)
        if known is not None:
            if known != hashed:
                raise _Bad(f"the event at position {position} is not the one of the earlier copy", position=position)
            self._known = position
        if self._traces.contradicts(event) and self._trace is None:
            self._trace = position
        self.tree.append(hashed)
        self._on_hash(hashed)
        self._meet_checkpoint()

    def _meet_checkpoint(self) -> None:
        if not self._checkpoints or self._checkpoints[0].size != self.tree.size:
            return
        checkpoint = self._checkpoints.pop(0)
        if checkpoint.root != self.tree.root():
            reason = f"the events up to position {checkpoint.size} do not have the root that the checkpoint has"
            if self._trace is not None:
                reason += f"; position {self._trace} contradicts what stands before it"
            raise _Bad(reason, upto=checkpoint.size)
        self.covered = self.tree.size
        self._trace = None

    def _end(self, summary: Summary, sha256: str) -> None:
        size = self.tree.size
        if self._checkpoints:
            reason = f"the export ends at position {size}, but a checkpoint covers {self._checkpoints[0].size} events"
            raise _Bad(reason, position=size + 1)
        if summary.count > size:
            raise _Bad(f"the last line counts {summary.count} events, but there are {size}", position=size + 1)
        if self._trace is not None:
            raise _Bad(f"position {self._trace} contradicts what stands before it", position=self._trace)
        if summary != Summary(size, 1 if size else None, size or None, sha256):
            raise _Bad("the last line does not fit the lines before it")


class _Own(msgspec.Struct):
    """What a payload says of its own place."""

    originator_id: UUID
    originator_version: int


class _Traces:
    """Finds where a rewritten history contradicts itself: versions with gaps, times that run backwards, payloads that
    name another aggregate. A careful forger leaves none of these, so they explain and never acquit."""

    def __init__(self) -> None:
        self._versions: OrderedDict[UUID, int] = OrderedDict()
        self._forgot = False
        self._recorded_us: int | None = None
        self._decoder = msgspec.json.Decoder(_Own)

    def contradicts(self, event: LoggedEvent) -> bool:
        version = self._versions.pop(event.originator_id, None)
        self._versions[event.originator_id] = event.originator_version
        if len(self._versions) > AGGREGATES_MAX:
            self._versions.popitem(last=False)
            self._forgot = True
        before, self._recorded_us = self._recorded_us, event.recorded_us
        if before is not None and event.recorded_us < before:
            return True
        is_next = event.originator_version == (version or 0) + 1 or (version is None and self._forgot)
        return not is_next or not self._owns(event)

    def _owns(self, event: LoggedEvent) -> bool:
        try:
            own = self._decoder.decode(event.payload)
        except (msgspec.DecodeError, UnicodeError):
            return False
        return (own.originator_id, own.originator_version) == (event.originator_id, event.originator_version)


# --- earlier copies --------------------------------------------------------------------------------------------------


def hashes_of_copy(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The leaf hashes in an earlier export or in a file of leaf hashes, from position 1 on.

    Raises:
        EarlierRejected: the file is neither.
    """
    source = iter(lines)
    first = next(source, b"")
    if first == HASHES_HEADER:
        yield from _saved_hashes(source)
        return
    position = 0
    line: bytes | None = first
    while line is not None and export.parse_summary(line) is None:
        position += 1
        try:
            event, _ = export.parse_line(line)
        except MalformedLine as error:
            raise EarlierRejected(f"line {position} of the earlier copy cannot be used: {error}") from None
        if event.position != position:
            raise EarlierRejected(f"line {position} of the earlier copy holds position {event.position}")
        yield export.hash_of(event)
        line = next(source, None)


def _saved_hashes(lines: Iterable[bytes]) -> Iterator[bytes]:
    for position, line in enumerate(lines, 1):
        try:
            hashed = bytes.fromhex(line.decode().removesuffix("\n"))
        except ValueError:
            hashed = b""
        if len(hashed) != HASH_BYTES:
            raise EarlierRejected(f"the hash of position {position} in the earlier copy cannot be read")
        yield hashed


def vouched(hashes: Iterable[bytes], checkpoints: Sequence[Checkpoint]) -> int:
    """How many of an earlier copy's hashes a checkpoint vouches for.

    Raises:
        EarlierRejected: a checkpoint contradicts the copy, or none is small enough to say anything about it.
        SplitView: the checkpoints contradict each other.
    """
    waiting = [checkpoint for checkpoint in ordered(checkpoints) if checkpoint.size]
    tree = CompactRange()
    covered = 0
    for hashed in hashes:
        tree.append(hashed)
        if waiting and waiting[0].size == tree.size:
            if waiting.pop(0).root != tree.root():
                raise EarlierRejected(f"the earlier copy does not have the root of the checkpoint of size {tree.size}")
            covered = tree.size
    if not covered:
        raise EarlierRejected(
            f"no checkpoint covers the earlier copy of {tree.size} events; give one of that size or smaller"
        )
    return covered
