"""The account that PostgreSQL runs as, and how a child of ours becomes it: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.postgres.embedded.directory import Layout
from adapters.postgres.embedded.errors import DataDirectoryIncompatible, PostgresStartFailed

# The account of the server when we are root, first choice first.
_UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """The account that the server runs as when we are root, which PostgreSQL refuses."""

    uid: int
    gid: int

    def own(self, path: Path | int) -> None:
        """Give a file or folder of ours to the account; raises `PostgresStartFailed` where root may not do that."""
        try:
            os.chown(path, self.uid, self.gid)
        except OSError as error:
            raise PostgresStartFailed(
                f"PostgreSQL must not run as root, and root cannot hand over to account {self.uid} here ({error}). "
                "Run Darkbloom as an ordinary user, or set DARKBLOOM_DATABASE_URL to another server."
            ) from error


def server_account(layout: Layout) -> Account | None:
    """Choose the account of the server: ours (None), or as root that of the cluster, or an unprivileged one."""
    if os.geteuid() != 0:
        return None
    if layout.cluster.exists():
        owner = layout.cluster.stat()
        if owner.st_uid == 0:
            raise DataDirectoryIncompatible(
                f"The cluster {layout.cluster} belongs to root, and PostgreSQL must not run as root. "
                f"Give it to another account (chown -R {_UNPRIVILEGED_ACCOUNTS[0]} {layout.cluster}), then start again."
            )
        return Account(owner.st_uid, owner.st_gid)
    for name in _UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise PostgresStartFailed(
        f"PostgreSQL must not run as root, and this system has none of the accounts {_UNPRIVILEGED_ACCOUNTS}. "
        "Run Darkbloom as an ordinary user, or set DARKBLOOM_DATABASE_URL to another server."
    )


def spawn(
    command: list[str], folder: Path, account: Account | None, output: int, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program of PostgreSQL in a folder, which it enters before it becomes the account.

    It gets a session of its own, so that Ctrl-C in a terminal reaches us and not it, and an environment of its own, so
    that neither our secrets nor PGPORT and its like reach it. It is not tied to our death: Linux could only tie it
    to the thread that starts it, which may well end long before the server should. The next start stops an orphan.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherited,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
