"""What the auditor is told of the Merkle tree inside of the database: roots, the signed head, ranges checked again."""

from __future__ import annotations

import hashlib

import pytest

from projections.audit import tree
from projections.transparency_follower import TransparencyFollower
from tests.support.ledger_commands import account, grant
from tests.support.ledger_waiting import Connection
from tests.support.ledger_writers import running

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
def grown(ledger: str, look: Connection) -> Connection:
    """A log of some events that the tree covers and nobody has signed."""
    with running(ledger) as writer:
        for _ in range(6):
            writer.execute(grant(account(), 10))
    TransparencyFollower(ledger, None, checkpoint_seconds=60.0).catch_up()
    return look


def tamper(look: Connection, statement: str) -> None:
    """Change the log as only the owner of the server can."""
    with look.transaction():
        look.execute("SET LOCAL session_replication_role = replica")
        look.execute(statement.encode())


def test_a_good_range_is_good(grown: Connection) -> None:
    found = tree.verify(grown, 3, 9)
    assert (found.ok, found.events, found.first_bad_position) == (True, 7, None)
    assert (found.from_position, found.to_position, found.head) == (3, 9, None)


def test_what_the_tree_does_not_cover_yet_is_not_looked_at(ledger: str, grown: Connection) -> None:
    with running(ledger) as writer:
        writer.execute(grant(account(), 10))
    found = tree.verify(grown, 1, 14)
    assert (found.ok, found.to_position, found.events) == (True, 12, 12)
    assert tree.root_at(grown, 14) is None


@pytest.mark.parametrize(
    ("change", "position"),
    [
        ("UPDATE events SET state = replace(convert_from(state, 'UTF8'), '10', '99')::bytea WHERE position = 5", 5),
        ("UPDATE events SET recorded_at = recorded_at + interval '1 microsecond' WHERE position = 7", 7),
        ("DELETE FROM events WHERE position = 4", 4),
        ("DELETE FROM events WHERE position = 12", 12),
    ],
)
def test_the_first_event_that_was_changed_is_named(grown: Connection, change: str, position: int) -> None:
    tamper(grown, change)
    found = tree.verify(grown, 1, 12)
    assert (found.ok, found.first_bad_position, found.events) == (False, position, position - 1)
    assert tree.verify(grown, 1, position - 1).ok


def test_roots_grow_with_the_log_and_begin_with_that_of_nothing(grown: Connection) -> None:
    roots = [tree.root_at(grown, position) for position in range(13)]
    assert roots[0] == hashlib.sha256().hexdigest()
    assert len(set(roots)) == 13
    assert None not in roots


def test_before_the_first_checkpoint_there_is_no_head(grown: Connection) -> None:
    assert tree.signed_head(grown) is None
