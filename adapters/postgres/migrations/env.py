"""Runs the migrations on the connection that the caller passes, or on DARKBLOOM_DATABASE_URL from the command line."""

from alembic import context
from sqlalchemy import Connection, create_engine

from adapters.postgres.migrate import sqlalchemy_url
from adapters.settings import Settings


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _run_on(connection)
        return
    engine = create_engine(sqlalchemy_url(Settings().database_url))
    with engine.begin() as opened:
        _run_on(opened)


def _run_on(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


run()
