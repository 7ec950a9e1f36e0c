"""Where the programs and the socket are used: in the wheel and the cluster, or else in a private temporary folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adapters.postgres.embedded.account import Account
from adapters.postgres.embedded.binaries import copy_binaries, runs, wheel_binaries
from adapters.postgres.embedded.directory import Layout, write_private
from adapters.postgres.embedded.errors import PostgresBinariesMissing

PORT = 5432  # only names the socket: nothing listens on the network
SOCKET_NAME = f".s.PGSQL.{PORT}"
_SOCKET_PATH_BYTES_MAX = 103  # macOS allows 103, Linux 107

# Not TMPDIR: that may itself be too long for a socket, or closed to the server's account.
_TEMPORARY = Path("/tmp")  # noqa: S108 - only `mkdtemp` makes names in it
_RUNTIME_PREFIX = "darkbloom-postgres-"


def reachable_places(layout: Layout, account: Account | None, resources: ExitStack) -> tuple[Path, Path]:
    """Return the folders of the binaries and of the socket, both where the server's account can use them.

    That is the wheel and the cluster; or else a private temporary folder, which `resources` then removes.
    """
    binaries, socket_folder = wheel_binaries(), layout.cluster
    closed = not runs(binaries, account)
    if closed or not _fits_socket(layout.cluster):
        socket_folder = resources.enter_context(_runtime_folder(layout, account))
    if closed and account:
        binaries = copy_binaries(binaries, socket_folder, account)
        closed = not runs(binaries, account)
    if closed:
        raise PostgresBinariesMissing(
            f"This account may not run the PostgreSQL binaries in {binaries}. "
            "Install Darkbloom where the account can execute it, or set DARKBLOOM_DATABASE_URL to another server."
        )
    return binaries, socket_folder


def _fits_socket(folder: Path) -> bool:
    path = os.fsencode(folder / SOCKET_NAME)
    return len(path) <= _SOCKET_PATH_BYTES_MAX and b"," not in path  # libpq takes a comma for a list of hosts


@contextmanager
def _runtime_folder(layout: Layout, account: Account | None) -> Iterator[Path]:
    """Make a private folder with a short path that the server's account can reach; it lives as long as the server."""
    folder = Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX, dir=_TEMPORARY))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        write_private(layout.runtime, str(folder))
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # systemd-tmpfiles spares old files in a locked folder
        if account:
            account.own(folder)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)
        layout.runtime.unlink(missing_ok=True)


def discard_leftover_runtime(layout: Layout) -> None:
    """Remove the temporary folder of an owner that was killed."""
    try:
        folder = Path(layout.runtime.read_text())
    except FileNotFoundError:
        return
    if folder.parent == _TEMPORARY and folder.name.startswith(_RUNTIME_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    layout.runtime.unlink()
