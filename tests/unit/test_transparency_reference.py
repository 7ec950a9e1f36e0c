"""The reference page of the transparency log: its vectors are what the program computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from adapters.crypto.notary import Ed25519Signer, verify_ed25519
from domain.transparency import audit, checkpoint, export, leaf, merkle, note, tiles

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "transparency-log.md").read_text()
BLOCKS = re.findall(r"^```(?:json lines|text)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
EXPORT, LEAF, VERIFIER_KEY, CHECKPOINT = BLOCKS
LINES = EXPORT.encode().splitlines(keepends=True)
EVENTS = [export.parse_line(line).event for line in LINES[:-1]]
HASHES = [export.hash_of(event) for event in EVENTS]
ROOTS = re.findall(r"^\| Root of \d events? \| `([0-9a-f]{64})` \|$", PAGE, flags=re.MULTILINE)


def test_the_leaf_is_the_one_of_the_page() -> None:
    assert leaf.encode(EVENTS[0]).hex() == "".join(LEAF.split())
    assert leaf.decode(bytes.fromhex("".join(LEAF.split()))) == EVENTS[0]


def test_the_export_is_the_one_of_the_page() -> None:
    assert b"".join(export.lines(zip(EVENTS, HASHES, strict=True))) == EXPORT.encode()
    assert [json.loads(line)["leaf_hash"] for line in LINES[:-1]] == [hashed.hex() for hashed in HASHES]


def test_the_roots_and_proofs_are_those_of_the_page() -> None:
    tree = tiles.append(0, HASHES, {})

    assert [root.hex() for root in tiles.roots_of([(0, size) for size in range(4)], tree)] == ROOTS
    assert tiles.roots_of(merkle.inclusion_ranges(1, 3), tree) == [HASHES[0], HASHES[2]]
    assert tiles.roots_of(merkle.consistency_ranges(2, 3), tree) == [HASHES[2]]


def test_the_checkpoint_is_the_one_of_the_page() -> None:
    signer = Ed25519Signer("darkbloom.example/ledger", bytes(range(32)))
    key = note.parse_verifier_key(VERIFIER_KEY)
    signed = note.parse(CHECKPOINT)

    assert key == signer.key
    assert note.verify(signed, [key], verify_ed25519) == [key]
    assert str(checkpoint.sign(checkpoint.read(signed), [signer])) == CHECKPOINT
    assert audit.verify(LINES, [checkpoint.read(signed)]).ok
