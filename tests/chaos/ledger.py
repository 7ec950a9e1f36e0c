"""The crash campaign: ``make chaos-ledger SEED=1 ROUNDS=200``.

Each round lets a process do random business on one ledger and takes something away from it: its life, at a point in its
write path; its server, which is stopped without a checkpoint; or its connection, at a commit. Afterwards every command
that was acknowledged is in the log exactly once, every batch is there as a whole or not at all, and the doctor finds
nothing. At the end all that was ever acknowledged is looked up once more.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import psycopg

from adapters.postgres import migrate
from adapters.postgres.embedded import EmbeddedPostgres
from projections.doctor import examine
from tests.chaos.faulty_writer import OUTCOME_POINTS, POINTS
from tests.support.ledger_proxy import Cut, PostgresProxy
from tests.support.ledger_waiting import Connection, until

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = 400
"""Of one round; most rounds end before."""

ENDLESS = 1_000_000
"""More than a round gets to, when somebody else ends it."""

NEVER_REACHED = "never reached its point"

EVENTS_BY_COMMAND = """
SELECT convert_from(state, 'UTF8')::jsonb ->> 'correlation_id', count(*) FROM events WHERE position > %s GROUP BY 1
"""
OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Outcome(NamedTuple):
    """What a round came to.

    ``happened`` is what was done to it, ``promised`` the acknowledged commands with the number of their events.
    Sentences, of which a sound round has none: ``lost`` about commands that were acknowledged, ``half`` about commands
    and batches that are in the log in part or too often, ``unsound`` what the doctor says.
    """

    what: str
    happened: str
    promised: Mapping[str, int]
    events: int
    lost: Sequence[str]
    half: Sequence[str]
    unsound: Sequence[str]

    @property
    def findings(self) -> list[str]:
        return [*self.lost, *self.half, *self.unsound]


class Total(NamedTuple):
    """What a campaign came to; ``lost`` counts what is not in the finished log as it was acknowledged."""

    rounds: int
    happened: Counter[str]
    acknowledged: int
    found: int
    lost: int
    half: int
    unsound: int

    @property
    def is_sound(self) -> bool:
        return (self.lost, self.half, self.unsound) == (0, 0, 0) and self.found == self.acknowledged


class Round:
    """One process on a ledger, and what it left in a folder of its own."""

    def __init__(self, url: str, seed: str, *, writer: str = "FaultyWriter", count: int = COMMANDS) -> None:
        self._seed = seed
        self._writer = writer
        self._count = count
        self._folder = tempfile.TemporaryDirectory()
        with psycopg.connect(url, autocommit=True) as look:
            self._begins_after = _head(look)

    @contextmanager
    def start(
        self, url: str, point: str = "never", occurrence: int = 1
    ) -> Generator[subprocess.Popen[bytes], None, None]:
        """The process. One that has not ended when the context does is killed: something went wrong, and is raised."""
        arguments = (url, self._folder.name, self._seed, self._writer, point, str(occurrence), str(self._count))
        with subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.worker", *arguments],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def acknowledged(self) -> list[str]:
        return self._lines("acknowledged")

    def judge(self, url: str, what: str, happened: str) -> Outcome:
        """Compare what was promised with what is there. The process must have ended."""
        with psycopg.connect(url, autocommit=True) as look:
            # The server may still be working on what the process sent with its last breath.
            until(lambda: look.execute(OTHER_SESSIONS).fetchone() == (0,), "the sessions of the dead process ended")
            found = _events_by_command(look, self._begins_after)
            events = _head(look) - self._begins_after
            diagnosis = examine(look)
        unsound = [f"the doctor: {finding.first}" for finding in diagnosis.findings if finding.first is not None]
        intents = [line.split() for line in self._lines("intents") if line]
        expected = {command: int(count) for _, command, count in intents}
        half = [
            f"{command} recorded {expected.get(command)} events, and {count} are in the log"
            for command, count in found.items()
            if expected.get(command) != count
        ]
        lost = [
            f"{command} was acknowledged, and {found.get(command, 0)} of its events are in the log"
            for command, times in Counter(self.acknowledged()).items()
            if times != 1 or found.get(command, 0) != expected.get(command)
        ]
        batches: dict[str, set[bool]] = {}
        for batch, command, count in intents:
            if int(count):
                batches.setdefault(batch, set()).add(command in found)
        half += [f"batch {batch} is half in the log" for batch, there in batches.items() if len(there) > 1]
        promised = {command: expected.get(command, -1) for command in self.acknowledged()}
        return Outcome(what, happened, promised, events, lost, half, unsound)

    def close(self) -> None:
        self._folder.cleanup()

    def _lines(self, name: str) -> list[str]:
        file = Path(self._folder.name) / name
        # A line that the kill cut off was never said.
        return file.read_text().split("\n")[:-1] if file.exists() else []


def kill_at(url: str, seed: str, point: str, occurrence: int, writer: str = "FaultyWriter") -> Outcome:
    """A process that ends itself at a point of its write path, when it comes there for so many times."""
    one = Round(url, seed, writer=writer)
    try:
        with one.start(url, point, occurrence) as process:
            process.wait(120)
        assert process.returncode in (0, -signal.SIGKILL), f"the worker failed with {process.returncode}"
        happened = point if process.returncode else NEVER_REACHED
        return one.judge(url, f"{point}, time {occurrence}{'' if process.returncode else ', never reached'}", happened)
    finally:
        one.close()


def kill_in_doubt(url: str, seed: str, point: str, cut: Cut) -> Outcome:
    """A process whose connection breaks at a commit, and that ends itself while it finds out what became of it."""
    one = Round(url, seed, count=ENDLESS)
    try:
        with PostgresProxy(url) as proxy, one.start(proxy.url, point) as process:
            until(one.acknowledged, "it works")
            proxy.cut_at_next_commit(cut)
            process.wait(120)
        assert process.returncode == -signal.SIGKILL, f"the worker ended with {process.returncode}"
        return one.judge(url, f"{point}, cut {cut.name}", point)
    finally:
        one.close()


def cut_connections(url: str, seed: str, random: Random) -> Outcome:
    """A process whose connection breaks at commits: the outcome is unknown until it has looked."""
    one = Round(url, seed, count=ENDLESS)
    cuts = [random.choice(list(Cut)) for _ in range(4)]
    try:
        with PostgresProxy(url) as proxy, one.start(proxy.url) as process:
            for cut in cuts:
                seen = len(one.acknowledged())
                until(lambda seen=seen: len(one.acknowledged()) > seen, "it works")  # type: ignore[misc]
                proxy.cut_at_next_commit(cut)
                assert proxy.has_cut.wait(30)
            seen = len(one.acknowledged())
            until(lambda: len(one.acknowledged()) > seen, "it works after the last cut")
            process.communicate(timeout=60)
        return one.judge(url, f"cuts: {', '.join(cut.name for cut in cuts)}", "connection cut at commits")
    finally:
        one.close()


def stop_server(server: EmbeddedPostgres, data_dir: Path, seed: str) -> tuple[EmbeddedPostgres, Outcome]:
    """A server that is stopped like ``pg_ctl stop -m immediate`` under load, and started again for the same process."""
    one = Round(server.dsn, seed, count=ENDLESS)
    dsn = server.dsn
    try:
        with one.start(dsn) as process:
            until(lambda: len(one.acknowledged()) > 50, "it works")
            postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])
            os.kill(postmaster, signal.SIGQUIT)
            server.stop()
            seen = len(one.acknowledged())
            server = EmbeddedPostgres.start(data_dir)
            assert server.dsn == dsn, "the server has moved"
            until(lambda: len(one.acknowledged()) > seen, "it works after the restart")
            process.communicate(timeout=60)
        return server, one.judge(dsn, "immediate stop of the server", "server stopped")
    finally:
        one.close()


def campaign(seed: int, rounds: int, data_dir: Path) -> Total:
    """So many rounds on one embedded server and one log. The points of the write path come in turn, shuffled."""
    random = Random(seed)
    outcomes: list[Outcome] = []
    points: list[str] = []
    server = EmbeddedPostgres.start(data_dir)
    try:
        migrate.upgrade(server.dsn)
        for number in range(rounds):
            name = f"{seed}.{number}"
            if number % 10 == 8:
                outcome = cut_connections(server.dsn, name, random)
            elif number % 10 == 9:
                server, outcome = stop_server(server, data_dir, name)
            else:
                points = points or random.sample(POINTS, len(POINTS))
                point = points.pop()
                if point in OUTCOME_POINTS:
                    outcome = kill_in_doubt(server.dsn, name, point, random.choice(list(Cut)))
                else:
                    outcome = kill_at(server.dsn, name, point, random.randrange(1, 25))
            outcomes.append(outcome)
            print(
                f"round {number + 1}: {outcome.what}: {len(outcome.promised)} acknowledged, {outcome.events} events",
                *outcome.findings,
                sep="\n    ",
                flush=True,
            )
        with psycopg.connect(server.dsn, autocommit=True) as look:
            return total_of(outcomes, _events_by_command(look, 0))
    finally:
        server.stop()


def total_of(outcomes: Sequence[Outcome], found: Mapping[str, int]) -> Total:
    """Count, with what the finished log holds of each command; a promise of an early round holds to the end."""
    promised = [promise for outcome in outcomes for promise in outcome.promised.items()]
    kept = sum(found.get(command, 0) == events for command, events in promised)
    return Total(
        len(outcomes),
        Counter(outcome.happened for outcome in outcomes),
        len(promised),
        kept,
        _count(outcome.lost for outcome in outcomes) + len(promised) - kept,
        _count(outcome.half for outcome in outcomes),
        _count(outcome.unsound for outcome in outcomes),
    )


def _count(sentences: Iterable[Sequence[str]]) -> int:
    return sum(map(len, sentences))


def main() -> None:
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    rounds = int(os.environ.get("ROUNDS") or 40)
    print(f"seed {seed}, {rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        total = campaign(seed, rounds, Path(folder) / "data")
    for what, times in sorted(total.happened.items()):
        print(f"{times:5} × {what}")
    print(
        f"seed {seed}: {total.rounds} rounds, {total.acknowledged} commands acknowledged, {total.found} found, "
        f"{total.lost} lost, {total.half} half there; the doctor found {total.unsound} violations"
    )
    sys.exit(0 if total.is_sound else 1)


def _events_by_command(look: Connection, after: int) -> dict[str, int]:
    return dict(look.execute(EVENTS_BY_COMMAND, (after,)).fetchall())


def _head(look: Connection) -> int:
    row = look.execute("SELECT position FROM ledger_head").fetchone()
    assert row is not None
    return int(row[0])


if __name__ == "__main__":
    main()
