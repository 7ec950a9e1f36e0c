"""How a tree rests in storage: tiles of up to 256 hashes (C2SP tlog-tiles).

Tile (L, t) holds the complete nodes of height 8·L with the numbers from 256·t on. Only the last tile of a level is
partial, and a tile only ever grows at its end. What stands between two levels is computed from the tile below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from domain.transparency.merkle import HASH_BYTES, Node, Range, complete_root, hash_of, nodes_of

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES


class TileId(NamedTuple):
    level: int
    number: int


Tiles = Mapping[TileId, bytes]
"""Tiles by their ids, each as its hashes one after the other."""


class TreeDamaged(Exception):
    """The stored tree lacks hashes that it must have, or does not fit the log; nothing can be proven from it."""


def tile_of(node: Node) -> TileId:
    """The tile from which a node's hash follows."""
    level, height = divmod(node.height, TILE_HEIGHT)
    return TileId(level, (node.number << height) // TILE_WIDTH)


def tiles_of(ranges: Iterable[Range]) -> set[TileId]:
    """Every tile that the roots of some ranges need."""
    return {tile_of(node) for part in ranges for node in nodes_of(part)}


def roots_of(ranges: Iterable[Range], tiles: Tiles) -> list[bytes]:
    """The roots of ranges.

    Raises:
        TreeDamaged: the tiles do not hold what they must.
    """

    def read(node: Node) -> bytes:
        level, height = divmod(node.height, TILE_HEIGHT)
        first = node.number << height
        stored = tiles.get(TileId(level, first // TILE_WIDTH), b"")
        begin = first % TILE_WIDTH * HASH_BYTES
        part = stored[begin : begin + (HASH_BYTES << height)]
        if len(part) != HASH_BYTES << height:
            raise TreeDamaged(f"tile {first // TILE_WIDTH} of level {level} is missing or too short")
        return part if height == 0 else complete_root(hashes_in(part))

    return [hash_of(part, read) for part in ranges]


def hashes_in(tile: bytes) -> list[bytes]:
    return [tile[begin : begin + HASH_BYTES] for begin in range(0, len(tile), HASH_BYTES)]


def last_tiles(size: int) -> list[TileId]:
    """The partial last tile of each level of a tree; appending starts from these."""
    found: list[TileId] = []
    level, width = 0, size
    while width:
        if width % TILE_WIDTH:
            found.append(TileId(level, width // TILE_WIDTH))
        width //= TILE_WIDTH
        level += 1
    return found


def append(size: int, hashes: Sequence[bytes], tiles: Tiles) -> dict[TileId, bytes]:
    """The tiles that change when leaf hashes are added to a tree. ``tiles`` are those that ``last_tiles`` names.

    Raises:
        TreeDamaged: a tile does not have the width that it must have at this size.
    """
    changed: dict[TileId, bytes] = {}
    level, width, added = 0, size, list(hashes)
    while added:
        index, used = divmod(width, TILE_WIDTH)
        grown = tiles[TileId(level, index)] if used and TileId(level, index) in tiles else b""
        if len(grown) != used * HASH_BYTES:
            raise TreeDamaged(f"tile {index} of level {level} does not have {used} hashes")
        joined = grown + b"".join(added)
        above: list[bytes] = []
        for begin in range(0, len(joined), TILE_BYTES):
            tile = joined[begin : begin + TILE_BYTES]
            changed[TileId(level, index)] = tile
            if len(tile) == TILE_BYTES:
                above.append(complete_root(hashes_in(tile)))
            index += 1
        level, width, added = level + 1, width // TILE_WIDTH, above
    return changed
