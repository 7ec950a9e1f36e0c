"""The server of a data directory: owned by this process, or found where another process runs it."""

from __future__ import annotations

import fcntl
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.postgres.embedded.account import server_account
from adapters.postgres.embedded.cluster import ensure_cluster
from adapters.postgres.embedded.directory import Layout, disk_errors_named, make_private, owner_lock, write_private
from adapters.postgres.embedded.launch import Launch, server_log
from adapters.postgres.embedded.leftovers import clear_leftovers
from adapters.postgres.embedded.places import reachable_places
from adapters.postgres.embedded.postmaster import running_postmaster, server_dsn, wait_until_ready


class EmbeddedPostgres:
    """A PostgreSQL server that this process owns. Call `stop`, or use it as a context manager."""

    def __init__(self, dsn: str, resources: ExitStack) -> None:
        self._dsn = dsn
        self._resources = resources

    @classmethod
    def start(cls, data_dir: Path, *, start_timeout_seconds: float = 120.0) -> Self:
        """Start the server of a data directory and wait until it answers; the first start makes the directory.

        A server that a killed owner left running is stopped first. The timeout counts from there and leaves room for
        crash recovery. Blocks; raises any `EmbeddedPostgresError`, and then nothing keeps running.
        """
        layout = Layout(data_dir.absolute())
        with disk_errors_named(layout.root), ExitStack() as resources:
            make_private(layout.root)
            resources.enter_context(owner_lock(layout))
            clear_leftovers(layout)
            deadline = time.monotonic() + start_timeout_seconds
            account = server_account(layout)
            binaries, socket_folder = reachable_places(layout, account, resources)
            with server_log(layout) as log:
                launch = Launch(layout, account, binaries, log, deadline)
                ensure_cluster(launch)
                process = resources.enter_context(running_postmaster(launch, socket_folder))
                wait_until_ready(launch, process, socket_folder)
            dsn = server_dsn(layout, socket_folder)
            resources.callback(layout.dsn.unlink, missing_ok=True)
            write_private(layout.dsn, dsn)
            return cls(dsn, resources.pop_all())

    @property
    def dsn(self) -> str:
        """URL of the database, password included, for `psycopg.connect`."""
        return self._dsn

    def stop(self) -> None:
        """Shut the server down and release the data directory; a second call does nothing.

        Sessions are ended at once. After 30 seconds the server is stopped the hard way, which loses no committed data.
        """
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def running_dsn(data_dir: Path) -> str | None:
    """Return the URL of the server that some live process runs on the directory, or None when none is ready.

    Raises `DataDirectoryUnwritable` when this account may not look into the directory.
    """
    layout = Layout(data_dir.absolute())
    with disk_errors_named(layout.root):
        try:
            with layout.lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(FileNotFoundError):
                return layout.dsn.read_text()
        except (FileNotFoundError, NotADirectoryError):
            pass
        return None
