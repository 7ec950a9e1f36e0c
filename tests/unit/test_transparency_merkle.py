"""The Merkle tree against the vectors of RFC 6962's first log, and against the definition written out naively."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.transparency import merkle, tiles
from domain.transparency.merkle import EMPTY_ROOT, CompactRange, Node, ProofRejected, Range, leaf_hash
from domain.transparency.tiles import TileId, TreeDamaged

LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSIONS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCIES = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:middle]) + naive_root(leaves[middle:])).digest()


def stored(leaves: Sequence[bytes], page: int = 300) -> dict[TileId, bytes]:
    """The tiles of a tree that grew page by page."""
    found: dict[TileId, bytes] = {}
    for begin in range(0, len(leaves), page):
        found |= tiles.append(begin, [leaf_hash(leaf) for leaf in leaves[begin : begin + page]], found)
    return found


def roots(leaves: Sequence[bytes], ranges: Sequence[Range]) -> list[bytes]:
    return tiles.roots_of(ranges, stored(leaves))


def numbered(size: int) -> list[bytes]:
    return [str(number).encode() for number in range(size)]


sizes = st.integers(1, 1_500)


# --- known answers ---------------------------------------------------------------------------------------------------


def test_the_empty_tree_has_the_root_of_nothing() -> None:
    assert CompactRange().root() == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_roots_are_the_known_ones() -> None:
    tree = CompactRange()
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        tree.append(leaf_hash(leaf))
        assert tree.root().hex() == root
        assert roots(LEAVES[: tree.size], [(0, tree.size)])[0].hex() == root


@pytest.mark.parametrize(("index", "size"), INCLUSIONS)
def test_inclusion_proofs_are_the_known_ones(index: int, size: int) -> None:
    proof = roots(LEAVES[:size], merkle.inclusion_ranges(index, size))

    assert [step.hex() for step in proof] == INCLUSIONS[index, size]
    merkle.verify_inclusion(
        index=index, size=size, hashed=leaf_hash(LEAVES[index]), proof=proof, root=bytes.fromhex(ROOTS[size - 1])
    )


@pytest.mark.parametrize(("old_size", "new_size"), CONSISTENCIES)
def test_consistency_proofs_are_the_known_ones(old_size: int, new_size: int) -> None:
    proof = roots(LEAVES[:new_size], merkle.consistency_ranges(old_size, new_size))

    assert [step.hex() for step in proof] == CONSISTENCIES[old_size, new_size]
    merkle.verify_consistency(
        old_size=old_size,
        new_size=new_size,
        old_root=bytes.fromhex(ROOTS[old_size - 1]),
        new_root=bytes.fromhex(ROOTS[new_size - 1]),
        proof=proof,
    )


# --- every tree ------------------------------------------------------------------------------------------------------


@given(sizes, st.integers(1, 700))
def test_a_tree_that_grew_in_pages_has_the_root_of_the_definition(size: int, page: int) -> None:
    leaves = numbered(size)
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))

    assert tree.root() == naive_root(leaves)
    assert tiles.roots_of([(0, size)], stored(leaves, page)) == [naive_root(leaves)]


@given(sizes, st.data())
def test_every_inclusion_proof_verifies_and_every_altered_one_fails(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    leaves = numbered(size)
    [root, *proof] = roots(leaves, [(0, size), *merkle.inclusion_ranges(index, size)])
    honest = {"index": index, "size": size, "hashed": leaf_hash(leaves[index]), "proof": proof, "root": root}

    merkle.verify_inclusion(**honest)

    for altered in (
        {"index": data.draw(st.integers(0, size).filter(lambda other: other != index))},
        {"hashed": leaf_hash(b"another")},
        {"root": leaf_hash(b"another")},
        {"proof": [*proof, root]},
        *({"proof": proof[:-1]} for _ in proof[:1]),
        *({"proof": [*proof[:at], flipped(step, data), *proof[at + 1 :]]} for at, step in enumerate(proof)),
        *({"proof": [*proof[:at], step[:-1], *proof[at + 1 :]]} for at, step in enumerate(proof[:1])),
    ):
        with pytest.raises(ProofRejected):
            merkle.verify_inclusion(**(honest | altered))


@given(sizes, st.data())
def test_every_consistency_proof_verifies_and_every_altered_one_fails(size: int, data: st.DataObject) -> None:
    old_size = data.draw(st.integers(1, size))
    leaves = numbered(size)
    ranges = merkle.consistency_ranges(old_size, size)
    [old_root, root, *proof] = roots(leaves, [(0, old_size), (0, size), *ranges])
    honest = {"old_size": old_size, "new_size": size, "old_root": old_root, "new_root": root, "proof": proof}
    assert old_root == naive_root(leaves[:old_size])

    merkle.verify_consistency(**honest)

    for altered in (
        {"old_root": leaf_hash(b"another")},
        {"new_root": leaf_hash(b"another")},
        {"old_size": 0},
        {"new_size": old_size - 1},
        {"proof": [*proof, root]},
        *({"proof": proof[:-1]} for _ in proof[:1]),
        *({"proof": [*proof[:at], flipped(step, data), *proof[at + 1 :]]} for at, step in enumerate(proof)),
    ):
        with pytest.raises(ProofRejected):
            merkle.verify_consistency(**(honest | altered))


@given(sizes, st.data())
def test_a_log_that_was_rewritten_is_consistent_with_nothing_that_was_signed_before(
    size: int, data: st.DataObject
) -> None:
    old_size = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, old_size - 1))
    leaves = numbered(size)
    rewritten = [*leaves[:changed], b"forged", *leaves[changed + 1 :]]
    [root, *proof] = roots(rewritten, [(0, size), *merkle.consistency_ranges(old_size, size)])

    with pytest.raises(ProofRejected):
        merkle.verify_consistency(
            old_size=old_size, new_size=size, old_root=naive_root(leaves[:old_size]), new_root=root, proof=proof
        )


def flipped(hashed: bytes, data: st.DataObject) -> bytes:
    """The hash with one bit turned over."""
    bit = data.draw(st.integers(0, 255))
    return bytes(byte ^ (1 << bit % 8 if number == bit // 8 else 0) for number, byte in enumerate(hashed))


# --- tiles -----------------------------------------------------------------------------------------------------------


@given(sizes)
def test_only_the_last_tile_of_a_level_is_partial_and_none_is_missing(size: int) -> None:
    found = stored(numbered(size))

    level, width = 0, size
    while width:
        assert [len(found[TileId(level, number)]) // 32 for number in range((width + 255) // 256)] == [
            min(256, width - 256 * number) for number in range((width + 255) // 256)
        ]
        level, width = level + 1, width // 256
    assert TileId(level, 0) not in found


def test_a_proof_of_a_large_tree_needs_few_tiles() -> None:
    for index in (0, 123_456, 999_999):
        assert len(tiles.tiles_of([(index, index + 1), *merkle.inclusion_ranges(index, 1_000_000)])) <= 6
    assert tiles.tile_of(Node(9, 1)) == TileId(1, 0)


def test_a_tree_that_lost_hashes_proves_nothing() -> None:
    found = stored(numbered(600))
    short = found | {TileId(0, 1): found[TileId(0, 1)][:-32]}
    without = {key: tile for key, tile in found.items() if key != TileId(0, 2)}

    for damaged in (short, without):
        with pytest.raises(TreeDamaged):
            tiles.roots_of([(0, 600), (510, 512), (512, 514)], damaged)
    with pytest.raises(TreeDamaged):
        tiles.append(600, [leaf_hash(b"next")], without)


def test_what_is_not_in_the_tree_cannot_be_proven() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="no leaf"):
            merkle.inclusion_ranges(index, size)
    for old_size, new_size in ((0, 1), (2, 1)):
        with pytest.raises(ValueError, match="cannot begin"):
            merkle.consistency_ranges(old_size, new_size)
