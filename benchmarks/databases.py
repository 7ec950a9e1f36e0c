"""Where benchmarks run: scratch databases with this build's schema, on a given server or on an embedded one."""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from adapters.postgres import migrate
from adapters.postgres.embedded import EmbeddedPostgres


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark with a database understands."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--database-url", help="a PostgreSQL server to make scratch databases on; else an embedded one")
    return parser


@contextmanager
def server(url: str | None) -> Generator[str, None, None]:
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres.start(Path(folder) / "data") as embedded:
        yield embedded.dsn


@contextmanager
def scratch_database(server_dsn: str) -> Generator[str, None, None]:
    name = f"darkbloom_benchmark_{secrets.token_hex(4)}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            dsn = urlsplit(server_dsn)._replace(path=f"/{name}").geturl()
            migrate.upgrade(dsn)
            yield dsn
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def show(figures: Mapping[str, float | int | str | None], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:36} {value:>14,}" if isinstance(value, int | float) else f"{name:36} {value!s:>14}")
