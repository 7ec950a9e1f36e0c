"""The cluster: checked before a start, or made by initdb with a password of its own on the first one."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from adapters.postgres.embedded.binaries import MAJOR_VERSION
from adapters.postgres.embedded.directory import Layout, sync_folder, write_private
from adapters.postgres.embedded.errors import DataDirectoryIncompatible
from adapters.postgres.embedded.launch import Launch

ROLE = "darkbloom"
BUILD_PREFIX = "postgres.new-"

# A collation that lives in PostgreSQL itself: an upgrade of the C library cannot corrupt an index.
_INITDB_OPTIONS = (
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    "--auth-local=scram-sha-256",
    "--auth-host=scram-sha-256",
    f"--username={ROLE}",
    "--no-instructions",
)


def ensure_cluster(launch: Launch) -> None:
    """Check the cluster, or make it; raises `DataDirectoryIncompatible` for one that we cannot run."""
    if launch.layout.cluster.exists():
        _check_cluster(launch.layout)
    else:
        _create_cluster(launch)


def _check_cluster(layout: Layout) -> None:
    try:
        version = (layout.cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        version = "none"
    if version != MAJOR_VERSION:
        raise DataDirectoryIncompatible(
            f"{layout.cluster} holds a cluster of PostgreSQL version {version}, and this is version {MAJOR_VERSION}. "
            "Choose another data directory, or move the data over with pg_upgrade or pg_dump."
        )
    if not layout.password.exists():
        raise DataDirectoryIncompatible(
            f"{layout.cluster} has no password in {layout.password}. "
            "Restore that file, or choose another data directory."
        )


def _create_cluster(launch: Launch) -> None:
    """Build the cluster in a folder beside its place and rename it when it is whole."""
    layout = launch.layout
    password = secrets.token_urlsafe(32)
    write_private(layout.password, password)
    build = Path(tempfile.mkdtemp(prefix=BUILD_PREFIX, dir=layout.root))
    try:
        if launch.account:
            launch.account.own(build)
        _initdb(launch, build, password)
        build.rename(layout.cluster)
        sync_folder(layout.root)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _initdb(launch: Launch, build: Path, password: str) -> None:
    # The account cannot open our password file, so it gets an open nameless one.
    with tempfile.TemporaryFile(dir=launch.layout.root) as password_file:
        password_file.write(f"{password}\n".encode())
        password_file.seek(0)
        descriptor = password_file.fileno()
        if launch.account:
            launch.account.own(descriptor)
        options = (f"--pwfile=/dev/fd/{descriptor}", *_INITDB_OPTIONS)
        process = launch.run("initdb", build, options, (descriptor,))
        try:
            status = process.wait(launch.deadline - time.monotonic())
        except subprocess.TimeoutExpired as error:
            raise launch.failure("initdb did not finish in time") from error
        finally:
            _kill_session(process)
    if status != 0:
        raise launch.failure(f"initdb gave up with status {status}")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End initdb with the servers that it started; does nothing if it has already ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
