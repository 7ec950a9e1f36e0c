"""One start of PostgreSQL: what its two programs, initdb and the server, have in common, their log above all."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.postgres.embedded.account import Account, spawn
from adapters.postgres.embedded.directory import LOCK_ATTEMPTS, LOCK_RETRY_SECONDS, Layout
from adapters.postgres.embedded.errors import DataDirectoryInUse, PostgresStartFailed

# The folder that a server process works in, as the process itself names it. The server runs as an account that may
# not pass the folders above the cluster: the data directory is 0700 and so may be its parents, /root for one. Our
# child enters the cluster before it gives up root, and from then on reaches it through this link, which the kernel
# follows without looking at the folders above. A plain "." would not do: PostgreSQL makes it absolute. The link stays
# true because PostgreSQL never leaves the cluster folder. It survives restarts, moves and symbolic links, since no
# path is stored. Elsewhere than on Linux root needs a data directory that the account can reach.
_WORKING_FOLDER = "/proc/self/cwd" if sys.platform == "linux" else "."

_LOG_BYTES_MAX = 16 * 1024 * 1024
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class ServerLog:
    """The open log and the offset at which this start began, in bytes."""

    descriptor: int
    start: int

    def tail(self) -> str:
        """Return the last lines that this start wrote."""
        size = os.fstat(self.descriptor).st_size
        offset = max(self.start, size - _LOG_TAIL_BYTES)
        text = os.pread(self.descriptor, size - offset, offset).decode(errors="replace")
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


@contextmanager
def server_log(layout: Layout) -> Iterator[ServerLog]:
    """Open the log and lock it. The server and all its children inherit that lock with the open log.

    So having it proves that no process of an earlier run is left, even one that we cannot see from our container.
    """
    descriptor = os.open(layout.log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        _lock_log(descriptor, layout)
        if os.fstat(descriptor).st_size > _LOG_BYTES_MAX:
            os.ftruncate(descriptor, 0)
        yield ServerLog(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _lock_log(descriptor: int, layout: Layout) -> None:
    for _ in range(LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_RETRY_SECONDS)  # a process that exits lets go of its files a moment after its folder
    pid = layout.recorded_postmaster()
    raise DataDirectoryInUse(
        f"A PostgreSQL of an earlier run (process {pid or 'of unknown PID'}, perhaps in another container) "
        f"still uses {layout.cluster}. Stop it, then start again."
    )


@dataclass(frozen=True)
class Launch:
    """One start: where, as whom, with which programs, into which log, and until when (monotonic seconds)."""

    layout: Layout
    account: Account | None
    binaries: Path
    log: ServerLog
    deadline: float

    def run(
        self, program: str, cluster: Path, options: Sequence[str], inherited: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a program that works in, and on, the folder of a cluster."""
        command = [str(self.binaries / program), "-D", _WORKING_FOLDER, *options]
        return spawn(command, cluster, self.account, self.log.descriptor, inherited)

    def failure(self, what: str) -> PostgresStartFailed:
        """Return the error that says what happened and shows the end of the log."""
        return PostgresStartFailed(
            f"PostgreSQL did not start: {what}. Resolve what the log {self.layout.log} says, then start again. "
            f"Its last lines:\n{self.log.tail() or '(empty)'}"
        )
