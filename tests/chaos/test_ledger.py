"""A short crash campaign, and the proof that it can fail."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.chaos.faulty_writer import POINTS
from tests.chaos.ledger import campaign, kill_at

SEED = int(os.environ.get("SEED", "0")) or secrets.randbits(32)


@pytest.mark.timeout(180)
def test_whatever_is_killed_no_acknowledged_command_is_lost_and_none_is_half_there(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    outcomes = campaign(SEED, 10, tmp_path / "data")
    assert [finding for outcome in outcomes for finding in outcome.findings] == []
    assert sum(outcome.acknowledged for outcome in outcomes) > 0


@pytest.mark.parametrize(
    ("writer", "point", "says"),
    [
        ("AcknowledgesTooEarly", "before COMMIT", "was acknowledged, and 0 of its events are in the log"),
        ("AcknowledgesTooEarly", "before statement 0", "was acknowledged, and 0 of its events are in the log"),
        ("CommitsInParts", "before commit", "are in the log"),
        ("CommitsInParts", "before COMMIT", "the doctor: invariant"),
    ],
)
def test_a_broken_writer_is_found_out(database: str, writer: str, point: str, says: str) -> None:
    findings = kill_at(database, "broken", point, 8, writer).findings
    assert any(says in finding for finding in findings), findings


@pytest.mark.parametrize("point", ["before decide", "while COMMIT", "after wake"])
def test_a_sound_writer_is_found_sound_at_the_same_points(database: str, point: str) -> None:
    outcome = kill_at(database, "sound", point, 8)
    assert outcome.findings == []
    assert not outcome.what.endswith("never reached")


def test_there_is_a_point_before_and_after_each_step_of_the_write_path() -> None:
    assert len(POINTS) == len(set(POINTS)) == 2 * (7 + 6 + 1) + 1
