"""What an owner that was killed could not clear away: its server, a half-made cluster, its runtime folder."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from adapters.postgres.embedded.cluster import BUILD_PREFIX
from adapters.postgres.embedded.directory import Layout
from adapters.postgres.embedded.places import discard_leftover_runtime
from adapters.postgres.embedded.postmaster import POLL_SECONDS, STOP_LADDER

_logger = logging.getLogger(__name__)


def clear_leftovers(layout: Layout) -> None:
    """Stop and remove all that an earlier owner left; needs the owner's lock."""
    layout.dsn.unlink(missing_ok=True)
    _stop_leftover_server(layout)
    for build in layout.root.glob(f"{BUILD_PREFIX}*"):
        _signal_all(_processes_in(build), signal.SIGKILL)
        _wait_until_left(build, 10.0)
        shutil.rmtree(build)
    discard_leftover_runtime(layout)


def _stop_leftover_server(layout: Layout) -> None:
    """Stop the processes that still work on the cluster; we hold the owner's lock, so none of them has an owner."""
    for signal_number, patience_seconds in STOP_LADDER:
        leftovers = _processes_in(layout.cluster)
        if not leftovers:
            return
        targets = leftovers
        if signal_number == signal.SIGINT:
            # Only a postmaster understands it as a fast shutdown. Its children, once orphaned, are to leave at once.
            postmaster = layout.recorded_postmaster()
            targets = [process for process in leftovers if process.pid == postmaster]
        if targets:
            _logger.warning("Stopping the PostgreSQL that an earlier process left running (%s)", signal_number.name)
            _signal_all(targets, signal_number)
            _wait_until_left(layout.cluster, patience_seconds)


def _processes_in(folder: Path) -> list[psutil.Process]:
    """Return the live PostgreSQL processes that work in the folder.

    The PID in `postmaster.pid` may by now be a stranger's, and a start time shifts when the clock is set: the folder
    that a process has open as its own is what ties it to this cluster, and it also finds orphaned children.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() in {"postgres", "initdb"} and folder.samefile(process.cwd()):
                found.append(process)
    return found


def _wait_until_left(folder: Path, patience_seconds: float) -> None:
    """Wait until no process works in the folder. They are not our children, and a zombie may linger: it has left."""
    deadline = time.monotonic() + patience_seconds
    while _processes_in(folder) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _signal_all(processes: Sequence[psutil.Process], signal_number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal_number)
