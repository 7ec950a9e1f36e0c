"""What can go wrong with the embedded PostgreSQL. Without a message of its own, an error says what to do in general.

The tree:

    EmbeddedPostgresError
    ├── DataDirectoryInUse
    ├── DataDirectoryUnwritable
    ├── DataDirectoryIncompatible
    ├── PostgresStartFailed
    └── PostgresBinariesMissing
"""

from __future__ import annotations


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL failed. Look into `postgres.log` in the data directory, then start again."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__ or type(self).__name__)


class DataDirectoryInUse(EmbeddedPostgresError):
    """Another process uses the data directory. Stop that process, or choose another data directory."""


class DataDirectoryUnwritable(EmbeddedPostgresError):
    """The data directory cannot be used. Give this account write access and free space, or choose another one."""


class DataDirectoryIncompatible(EmbeddedPostgresError):
    """The data directory was not made by this version of Darkbloom. Choose another one, or upgrade its data first."""


class PostgresStartFailed(EmbeddedPostgresError):
    """PostgreSQL did not start. Look into `postgres.log` in the data directory, then start again."""


class PostgresBinariesMissing(EmbeddedPostgresError):
    """The PostgreSQL binaries are missing. Install `darkbloom[coordinator]`, or set DARKBLOOM_DATABASE_URL."""
