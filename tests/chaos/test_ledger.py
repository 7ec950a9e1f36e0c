"""A short crash campaign, and the proof that it can fail."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import pytest

from adapters.postgres.writer import LedgerWriter
from tests.chaos.faulty_writer import OUTCOME_POINTS, POINTS, STEPS, FaultyWriter
from tests.chaos.ledger import Outcome, campaign, kill_at, kill_in_doubt, total_of
from tests.support.ledger_proxy import Cut

SEED = int(os.environ.get("SEED", "0")) or secrets.randbits(32)


@pytest.mark.timeout(180)
def test_whatever_is_killed_no_acknowledged_command_is_lost_and_none_is_half_there(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    total = campaign(SEED, 10, tmp_path / "data")
    assert total.is_sound, total
    assert total.rounds == total.happened.total() == 10
    assert total.acknowledged > 0


@pytest.mark.parametrize(
    ("writer", "point", "says"),
    [
        ("AcknowledgesTooEarly", "acknowledged", "was acknowledged, and 0 of its events are in the log"),
        ("CommitsInParts", "between the parts", "are in the log|is half in the log"),
        ("CommitsInParts", "between the parts", "the doctor: invariant"),
    ],
)
def test_a_broken_writer_is_found_out(database: str, writer: str, point: str, says: str) -> None:
    findings = kill_at(database, "broken", point, 3, writer).findings
    assert any(re.search(says, finding) for finding in findings), findings


@pytest.mark.parametrize("point", ["before decide", "while COMMIT", "after wake"])
def test_a_sound_writer_is_found_sound_at_the_same_points(database: str, point: str) -> None:
    outcome = kill_at(database, "sound", point, 8)
    assert outcome.findings == []
    assert not outcome.what.endswith("never reached")


@pytest.mark.parametrize("cut", Cut)
@pytest.mark.parametrize("point", OUTCOME_POINTS)
def test_a_writer_that_dies_while_the_outcome_is_unknown_has_promised_nothing_false(
    database: str, point: str, cut: Cut
) -> None:
    assert kill_in_doubt(database, "doubt", point, cut).findings == []


def test_a_promise_that_a_later_round_breaks_is_found_at_the_end() -> None:
    early = Outcome("early", "before wake", {"1.0-1": 2, "1.0-2": 0}, 2, (), (), ())
    late = Outcome("late", "after wake", {"1.1-1": 1}, 1, (), (), ())
    assert total_of([early, late], {"1.0-1": 2, "1.1-1": 1}).is_sound

    total = total_of([early, late], {"1.1-1": 1})
    assert not total.is_sound
    assert (total.acknowledged, total.found, total.lost) == (3, 2, 1)


def test_there_is_a_point_before_and_after_each_step_of_the_write_path() -> None:
    for step in (*STEPS, "was_committed"):
        assert getattr(FaultyWriter, f"_{step}") is not getattr(LedgerWriter, f"_{step}")
        assert {f"before {step}", f"after {step}"} <= set(POINTS)
    assert len(POINTS) == len(set(POINTS)) == 2 * (9 + 8 + 1) + 1
