"""A coordinator and a real agent that many tests share."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from agent.testing.tiny_model import build_reciting_model
from tests.conftest import database_url
from tests.support.machine import MODEL
from tests.support.people import ADMIN_EMAIL, ADMIN_KEY
from tests.support.processes import Coordinator, Process, agent, coordinator, eventually

TINY_MODEL = Path(__file__).parents[2] / "models" / MODEL


@pytest.fixture(scope="session")
def up(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, migrated_template: str
) -> Generator[Coordinator, None, None]:
    """``darkbloomd up`` on a database of its own; machines of one test leave with it."""
    name = f"darkbloom_test_up_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
        folder = tmp_path_factory.mktemp("up")
        quick = {
            "DARKBLOOM_NO_PROVIDER_WAIT_SECONDS": "1",
            "DARKBLOOM_FIRST_SIGNAL_SECONDS": "2",
            "DARKBLOOM_HEDGE_PERCENT_MAX": "0",  # what one test does must not depend on the times of those before it
            "DARKBLOOM_CHECKPOINT_KEY_FILE": str(folder / "checkpoint.key"),
            "DARKBLOOM_CHECKPOINT_SECONDS": "1",
            "DARKBLOOM_SESSION_KEY_FILE": str(folder / "session.key"),
            "DARKBLOOM_ADMIN_KEY": ADMIN_KEY,
            "DARKBLOOM_ADMIN_EMAILS": ADMIN_EMAIL,
            "DARKBLOOM_SEALING_KEY_FILE": str(folder / "sealing.key"),
        }
        with coordinator(folder, database=database_url(postgres_server, name), env=quick) as running:
            yield running
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return TINY_MODEL


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never comes to an end, so that something can happen in the middle of its answer."""
    script = [f" word{number}".encode() for number in range(50)]
    return build_reciting_model(
        tmp_path_factory.mktemp("models") / "endless", script, endless=True, context_length=100_000
    )


@pytest.fixture
def endless_agent(up: Coordinator, tmp_path: Path, endless_model: Path) -> Generator[Process, None, None]:
    """A real agent whose answers go on until they are stopped."""
    key = up.books.open_account(0)
    with agent(tmp_path, up.url, endless_model) as process:
        eventually(lambda: endless_model.name in up.models(key.secret), "the agent to be routable")
        yield process


@pytest.fixture
def real_agent(up: Coordinator, tmp_path: Path, tiny_model: Path) -> Generator[Process, None, None]:
    """A real agent that serves the tiny model, connected and routable."""
    key = up.books.open_account(0)
    eventually(lambda: not up.models(key.secret), "the machines of other tests to leave")
    with agent(tmp_path, up.url, tiny_model) as process:
        eventually(lambda: MODEL in up.models(key.secret), "the agent to be routable")
        yield process
