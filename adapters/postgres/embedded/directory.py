"""The data directory: the names in it, the lock of its owner, and private files that are whole or not there.

It holds:

    lock          flock of the process that owns the server, with its PID as text
    postgres/     the cluster, and its socket where the path is short enough for one
    postgres.log  what initdb and the server say
    password      of the superuser `darkbloom`
    dsn           while the server runs: where other processes find it
    runtime       while one is needed: the path of a private temporary folder
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from adapters.postgres.embedded.errors import DataDirectoryInUse, DataDirectoryUnwritable

LOCK_ATTEMPTS = 25
LOCK_RETRY_SECONDS = 0.02


class Layout:
    """The names inside a data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "lock"
        self.cluster = root / "postgres"
        self.log = root / "postgres.log"
        self.password = root / "password"
        self.dsn = root / "dsn"
        self.runtime = root / "runtime"

    def recorded_postmaster(self) -> int | None:
        """Return the PID that the cluster's last server wrote down, which may by now be a stranger's."""
        try:
            return _parse_pid((self.cluster / "postmaster.pid").read_bytes())
        except FileNotFoundError:
            return None


@contextmanager
def disk_errors_named(data_dir: Path) -> Iterator[None]:
    """Turn what the system says about files into `DataDirectoryUnwritable`."""
    try:
        yield
    except OSError as error:
        raise DataDirectoryUnwritable(
            f"The data directory {data_dir} cannot be used: {error}. "
            "Give this account write access and free space there, or choose another data directory."
        ) from error


@contextmanager
def owner_lock(layout: Layout) -> Iterator[None]:
    """Hold the directory. The kernel releases the lock when we die, and postgres does not inherit it."""
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take_lock(descriptor, layout)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, layout: Layout) -> None:
    holder: int | None = None
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _parse_pid(os.pread(descriptor, 32, 0))
            if holder is not None and psutil.pid_exists(holder):
                break
            # No live PID: `running_dsn` is looking, or the holder has not written its own yet. Both last microseconds.
            time.sleep(LOCK_RETRY_SECONDS)
        else:
            return
    raise DataDirectoryInUse(
        f"Process {holder or 'of unknown PID'} already uses the data directory {layout.root}. "
        "Stop that process, or choose another data directory."
    )


def _parse_pid(text: bytes) -> int | None:
    first_line = text.split(b"\n", 1)[0]
    return int(first_line) if first_line.isdigit() else None


def write_private(path: Path, text: str) -> None:
    """Put text into a file that only we can read, whole or not at all, and durably."""
    draft = path.with_name(f"{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(folder: Path) -> None:
    """Make a folder and what is missing above it, all closed to others; what is there keeps its mode."""
    for missing in reversed([folder, *folder.parents]):
        if not missing.exists():
            missing.mkdir(mode=0o700, exist_ok=True)
