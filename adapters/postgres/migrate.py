"""Brings a database to this build's schema. Alembic owns every table."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

SERVER_VERSION_MIN = 150_000
_MIGRATION_LOCK = 7_224_318_551
"""The advisory lock under which one process at a time migrates."""


class DatabaseUnusable(Exception):
    """The database cannot be used."""


class DatabaseUnreachable(DatabaseUnusable):
    """The database server does not answer; check DARKBLOOM_DATABASE_URL and that the server runs."""


class AddressMalformed(DatabaseUnreachable):
    """DARKBLOOM_DATABASE_URL must look like postgresql://user:password@host/name, with %40 for an @ in the password."""


class ServerTooOld(DatabaseUnusable):
    """This PostgreSQL server is older than version 15; upgrade it."""


class SchemaTooNew(DatabaseUnusable):
    """A newer release of Darkbloom wrote this database; install that release or a later one. Nothing was changed."""


class SchemaTooOld(DatabaseUnusable):
    """This database is empty or was made by an older release; run 'darkbloomd migrate' first."""


def sqlalchemy_url(dsn: str) -> str:
    scheme, _, rest = dsn.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else dsn


def upgrade(dsn: str) -> None:
    """Run the missing migrations, in one transaction each, one process at a time.

    Raises:
        DatabaseUnusable: one of the reasons above.
    """
    with _connect(dsn) as guard:
        guard.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        if _revision_state(guard) == "missing":
            engine = create_engine(sqlalchemy_url(dsn), poolclass=NullPool)
            with engine.begin() as connection:
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            engine.dispose()


def require_current(dsn: str) -> None:
    """Check that the schema is this build's.

    Raises:
        DatabaseUnusable: one of the reasons above.
    """
    with _connect(dsn) as connection:
        if _revision_state(connection) == "missing":
            raise SchemaTooOld(SchemaTooOld.__doc__)


def _connect(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    _require_address(dsn)
    try:
        connection = psycopg.connect(dsn, autocommit=True, connect_timeout=10)
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(f"{DatabaseUnreachable.__doc__} ({str(error).splitlines()[0]})") from error
    if connection.info.server_version < SERVER_VERSION_MIN:
        connection.close()
        raise ServerTooOld(ServerTooOld.__doc__)
    return connection


def _require_address(dsn: str) -> None:
    """Refuse what would be misread: the driver repeats in its errors what it cannot read, a password perhaps."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise AddressMalformed(AddressMalformed.__doc__) from None
    hosts, ports = str(parts.get("host", "")), str(parts.get("port", ""))
    if "@" in hosts or not all(port.isdigit() for port in ports.split(",") if port):
        raise AddressMalformed(AddressMalformed.__doc__)


def _revision_state(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """``current`` or ``missing`` (some migration has yet to run)."""
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return "missing"
    found = {str(version) for (version,) in connection.execute("SELECT version_num FROM alembic_version")}
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    if not found <= known:
        raise SchemaTooNew(SchemaTooNew.__doc__)
    return "current" if found == set(scripts.get_heads()) else "missing"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
