"""The market holds in every run, a seed is one run, and whoever breaks the scheduler is found out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.broken_schedulers import ALL, Broken
from tests.simulation.campaign import outcomes, report_of, total_of
from tests.simulation.market import CALM_EVERY, HEDGES_EVERY, run

SEEDS = 200
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)  # twenty seconds on two idle cores
def test_in_two_hundred_runs_the_market_holds_and_heals() -> None:
    done = list(outcomes(range(SEEDS)))

    broken = [one for one in done if one.broken]
    assert not broken, report_of(broken[0])
    total = total_of(done)
    print(total)
    assert total.answered > total.requests / 2
    assert total.hedges > SEEDS / HEDGES_EVERY
    assert len(total.faults) > 10


def test_when_nothing_breaks_everybody_is_served() -> None:
    outcome = run(CALM_EVERY)

    assert outcome.broken == ""
    assert outcome.fault_kinds == ()
    assert outcome.answered > 0.9 * outcome.requests


def test_a_seed_is_the_same_run_in_every_process() -> None:
    seeds = (1, 3, 14)
    program = f"from tests.simulation.market import run\nfor seed in {seeds}: print(run(seed).digest)"

    def digests(hash_seed: str) -> list[str]:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.split()

    first = digests("1")

    assert len(set(first)) == len(seeds)
    assert digests("2") == first
    assert [run(seed).digest for seed in seeds] == first


@pytest.mark.parametrize("broken", ALL, ids=[broken.breakage.__name__ for broken in ALL])
def test_a_broken_scheduler_is_found(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.breakage(monkeypatch)

    seeds = range(broken.seeds_max)
    runs = (run(seed, only_faults=broken.faults, is_crowded=broken.in_a_crowd) for seed in seeds)
    found = next((outcome for outcome in runs if outcome.broken), None)

    assert found is not None
    print(f"{broken.breakage.__name__} at seed {found.seed}: {found.broken}")
    assert "the simulation failed" not in found.broken
