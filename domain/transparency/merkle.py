"""The Merkle tree of RFC 6962 (section 2.1): hashes, roots, inclusion and consistency proofs, and their verification.

A node is named by its height and its number at that height: node (h, i) is the root over leaves i·2^h to (i+1)·2^h - 1.
Only such complete nodes are ever stored or asked for; the hash of any other range follows from a few of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

LEAF_PREFIX = b"\x00"
NODE_PREFIX = b"\x01"
"""Two prefixes keep a node from ever being taken for a leaf."""

Range = tuple[int, int]
"""Leaves from the first number up to, but not including, the second."""

ReadNode = Callable[["Node"], bytes]
"""The hash of a complete node."""

_sha256 = hashlib.sha256


class Node(NamedTuple):
    height: int
    number: int


class ProofRejected(ValueError):
    """The proof does not lead from what it starts with to the root."""


def leaf_hash(leaf: bytes) -> bytes:
    return _sha256(LEAF_PREFIX + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return _sha256(NODE_PREFIX + left + right).digest()


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root over 2^n hashes."""
    assert hashes, "a complete tree has a leaf"
    assert len(hashes) & (len(hashes) - 1) == 0, "a complete tree has 2^n leaves"
    level = list(hashes)
    sha256 = _sha256
    while len(level) > 1:
        pairs = iter(level)
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return level[0]


class CompactRange:
    """A growing tree of which only the roots of its complete parts are kept: at most one a bit of its size."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, hashed: bytes) -> None:
        """Add the hash of the next leaf."""
        rest = self.size
        while rest & 1:
            hashed = _sha256(NODE_PREFIX + self._peaks.pop() + hashed).digest()
            rest >>= 1
        self._peaks.append(hashed)
        self.size += 1

    def root(self) -> bytes:
        return _join(self._peaks) if self._peaks else EMPTY_ROOT


def _join(hashes: Sequence[bytes]) -> bytes:
    """The root over adjoining parts of falling size."""
    *rest, joined = hashes
    for left in reversed(rest):
        joined = node_hash(left, joined)
    return joined


# --- what a proof is made of -----------------------------------------------------------------------------------------


def nodes_of(part: Range) -> list[Node]:
    """The complete nodes, from left to right, that make up a range which begins where a subtree begins."""
    first, end = part
    found: list[Node] = []
    while first < end:
        height = (end - first).bit_length() - 1
        assert first % (1 << height) == 0, "a range begins where a subtree of its size begins"
        found.append(Node(height, first >> height))
        first += 1 << height
    return found


def hash_of(part: Range, read: ReadNode) -> bytes:
    """The root over a range as ``nodes_of`` takes it; of nothing, the root of the empty tree."""
    nodes = nodes_of(part)
    return _join([read(node) for node in nodes]) if nodes else EMPTY_ROOT


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges whose roots are the proof that leaf ``index`` is in the tree of ``size`` leaves.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    first, end = 0, size
    ranges: list[Range] = []
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges[::-1]


def consistency_ranges(old_size: int, new_size: int) -> list[Range]:
    """The ranges whose roots are the proof that the tree of ``new_size`` leaves begins with that of ``old_size``.

    Raises:
        ValueError: the sizes are not 1 ≤ old ≤ new.
    """
    if not 1 <= old_size <= new_size:
        raise ValueError(f"a tree of {new_size} leaves cannot begin with one of {old_size}")
    first, end = 0, new_size
    ranges: list[Range] = []
    while old_size != end:
        middle = first + _split(end - first)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first:
        ranges.append((first, end))
    return ranges[::-1]


def _split(size: int) -> int:
    """The largest power of two below a size of two or more."""
    return 1 << ((size - 1).bit_length() - 1)


# --- verification ----------------------------------------------------------------------------------------------------


def verify_inclusion(*, index: int, size: int, hashed: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf with hash ``hashed`` stands at ``index`` of the tree of ``size`` leaves.

    Raises:
        ProofRejected: it does not, or the proof does not show it.
    """
    _require_hashes([hashed, root, *proof])
    try:
        ranges = inclusion_ranges(index, size)
    except ValueError as error:
        raise ProofRejected(str(error)) from None
    _require_length(proof, ranges)
    for step, (_, end) in zip(proof, ranges, strict=True):
        hashed = node_hash(step, hashed) if end <= index else node_hash(hashed, step)
    if hashed != root:
        raise ProofRejected("the proof leads to another root")


def verify_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of ``new_size`` leaves begins with the whole one of ``old_size``.

    Raises:
        ProofRejected: it does not, or the proof does not show it.
    """
    _require_hashes([old_root, new_root, *proof])
    try:
        ranges = consistency_ranges(old_size, new_size)
    except ValueError as error:
        raise ProofRejected(str(error)) from None
    _require_length(proof, ranges)
    steps = list(zip(proof, ranges, strict=True))
    if old_size & (old_size - 1) == 0 or not steps:
        old = new = old_root
    else:
        old = new = steps.pop(0)[0]
    for step, (_, end) in steps:
        if end <= old_size:
            old, new = node_hash(step, old), node_hash(step, new)
        else:
            new = node_hash(new, step)
    if (old, new) != (old_root, new_root):
        raise ProofRejected("the proof leads to other roots")


def _require_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(hashed) != HASH_BYTES for hashed in hashes):
        raise ProofRejected("a hash in the proof does not have 32 bytes")


def _require_length(proof: Sequence[bytes], ranges: Sequence[Range]) -> None:
    if len(proof) != len(ranges):
        raise ProofRejected(f"this proof has {len(proof)} hashes; it must have {len(ranges)}")
