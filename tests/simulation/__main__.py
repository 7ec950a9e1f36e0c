"""``make simulate``: many seeds, or one with its whole trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from tests.simulation.campaign import outcomes, report_of, total_of
from tests.simulation.market import Outcome, run

FAILURES_SHOWN_MAX = 3


def replay(seed: int) -> bool:
    outcome = run(seed, on_line=print)
    print(f"seed {seed}: {outcome.broken or 'everything holds'}")
    print(f"trace {outcome.digest}")
    return not outcome.broken


def campaign(first: int, seeds: int) -> bool:
    began, broken = time.monotonic(), list[int]()

    def watched() -> Iterator[Outcome]:
        for number, one in enumerate(outcomes(range(first, first + seeds)), 1):
            if one.broken:
                broken.append(one.seed)
                if len(broken) <= FAILURES_SHOWN_MAX:
                    print(report_of(one), flush=True)
            if number % 500 == 0:
                print(f"{number} seeds, {len(broken)} broken", file=sys.stderr, flush=True)
            yield one

    total = total_of(watched())
    seconds = time.monotonic() - began
    print(
        f"{total.seeds} seeds from {first} in {seconds:.0f} s: {total.requests} requests, {total.answered} answered, "
        f"{total.hedges} hedges, {total.events} events, {total.virtual_hours:.1f} hours of virtual time"
    )
    print("runs with faults of each kind: " + ", ".join(f"{name} {count}" for name, count in total.faults.items()))
    print(f"traces {total.digest}")
    print(f"broken: {', '.join(map(str, broken)) or 'none'}")
    return not broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one with its whole trace")
    options = parser.parse_args()
    good = campaign(options.first, options.seeds) if options.seed is None else replay(options.seed)
    sys.exit(not good)


if __name__ == "__main__":
    main()
