"""The server process: its settings, how to reach it, when it is ready, and how it is stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg

from adapters.postgres.embedded.cluster import ROLE
from adapters.postgres.embedded.directory import Layout
from adapters.postgres.embedded.errors import DataDirectoryIncompatible
from adapters.postgres.embedded.launch import Launch
from adapters.postgres.embedded.places import PORT, SOCKET_NAME

_logger = logging.getLogger(__name__)

_DATABASE = "darkbloom"
_MAINTENANCE_DATABASE = "postgres"

POLL_SECONDS = 0.02
_CONNECT_TIMEOUT_SECONDS = 5

# A fast shutdown ends the sessions and writes a checkpoint; an immediate one leaves crash recovery to the next start.
STOP_LADDER = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

# On the command line, so that they hold for every cluster whenever it was made, and cannot be weakened by a file in it.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(PORT),
    "cluster_name": "darkbloom",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    # Statements and error details carry values of rows: they belong to the client that gets them, not to a log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}

# One row if our database exists.
_FIND_DATABASE = "SELECT 1 FROM pg_database WHERE datname = 'darkbloom'"
# Makes our database, empty.
_CREATE_DATABASE = "CREATE DATABASE darkbloom"


def server_dsn(layout: Layout, socket_folder: Path, database: str = _DATABASE) -> str:
    """Return the URL of a database, password included."""
    password = quote(layout.password.read_text(), safe="")
    host = quote(os.fsencode(socket_folder), safe="")
    return f"postgresql://{ROLE}:{password}@/{database}?host={host}&port={PORT}"


@contextmanager
def running_postmaster(launch: Launch, socket_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server; leaving stops it."""
    cluster = launch.layout.cluster
    # The lock of the log proves that these are stale. PostgreSQL would refuse to start if the PID in them
    # had meanwhile gone to any other process of its account.
    for stale in ("postmaster.pid", f"{SOCKET_NAME}.lock", SOCKET_NAME):
        (cluster / stale).unlink(missing_ok=True)
    listen = "." if socket_folder == cluster else str(socket_folder)
    settings = _SETTINGS | {"unix_socket_directories": listen}
    options: list[str] = []
    for name, value in settings.items():
        options += ["-c", f"{name}={value}"]
    process = launch.run("postgres", cluster, options)
    try:
        yield process
    finally:
        _stop(process)


def wait_until_ready(launch: Launch, process: subprocess.Popen[bytes], socket_folder: Path) -> None:
    """Connect until the server answers, then see that our database exists."""
    dsn = server_dsn(launch.layout, socket_folder, _MAINTENANCE_DATABASE)
    while (connection := _try_connect(dsn, launch.layout)) is None:
        if process.poll() is not None:
            raise launch.failure(f"the server ended with status {process.returncode}")
        if time.monotonic() > launch.deadline:
            raise launch.failure("the server was not ready in time")
        time.sleep(POLL_SECONDS)
    with connection:
        try:
            if connection.execute(_FIND_DATABASE).fetchone() is None:
                connection.execute(_CREATE_DATABASE)
        except psycopg.Error as error:
            raise launch.failure(f"the database could not be made ({error})") from error


def _try_connect(dsn: str, layout: Layout) -> psycopg.Connection | None:
    """Return a connection, or None while the server is not ready."""
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_SECONDS)
    except psycopg.OperationalError as error:
        # A failed connection has no SQLSTATE; the server's messages are in English because its locale is C.
        if "password authentication failed" not in str(error):
            return None
        raise DataDirectoryIncompatible(
            f"The cluster {layout.cluster} does not accept the password in {layout.password}. "
            "Restore the file that belongs to it, or choose another data directory."
        ) from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    for signal_number, patience_seconds in STOP_LADDER:
        process.send_signal(signal_number)  # does nothing once the process has ended
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
            return
        _logger.warning("PostgreSQL did not stop on %s within %s seconds", signal_number.name, patience_seconds)
