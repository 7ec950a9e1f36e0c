"""The embedded PostgreSQL 18: the binaries come from a wheel; starting, guarding and stopping them is ours.

`server` is the face and shows the steps of a start. The data directory and its lock are in `directory`; who runs
PostgreSQL is in `account`, from where in `binaries` and `places`; `cluster` and `postmaster` run its two programs with
what `launch` gives both; `leftovers` ends what a killed owner could not.
"""

from adapters.postgres.embedded.errors import (
    DataDirectoryIncompatible,
    DataDirectoryInUse,
    DataDirectoryUnwritable,
    EmbeddedPostgresError,
    PostgresBinariesMissing,
    PostgresStartFailed,
)
from adapters.postgres.embedded.server import EmbeddedPostgres, running_dsn

__all__ = [
    "DataDirectoryInUse",
    "DataDirectoryIncompatible",
    "DataDirectoryUnwritable",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "PostgresBinariesMissing",
    "PostgresStartFailed",
    "running_dsn",
]
