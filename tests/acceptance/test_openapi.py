"""The OpenAPI document says what the program does: its operations are the routes, and its examples run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from adapters.postgres import credentials
from api.app import make_app
from api.openapi.routes import document
from domain.catalog import Catalog
from domain.protocol import HEARTBEAT_INTERVAL_SECONDS
from tests.support.machine import Machine
from tests.support.processes import Coordinator, Process

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
METHODS = ("get", "post", "put", "patch", "delete")
NOT_FOR_CLIENTS = (
    "/internal/",
    "/openapi.json",
    "/readyz",
    "/v1/admin/",
    "/v1/transparency/",
    "/ws/provider",
)
"""Of operators, machines and auditors, whose pages of the documentation describe them."""


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, item[method])
        for path, item in document()["paths"].items()
        for method in METHODS
        if method in item
    ]


def examples() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, name, example["value"])
        for method, path, operation in operations()
        if method == "post"
        for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items()
    ]


def test_every_route_is_described_and_nothing_else_is() -> None:
    async def no_lifespan(_: object) -> None: ...

    app = make_app(no_lifespan, development=True, origins=())  # type: ignore[arg-type]
    routes = {
        (method.lower(), re.sub(r"\{(\w+):path\}", r"{\1}", route.path))
        for included in app.routes
        for route in included.original_router.routes  # type: ignore[attr-defined]
        for method in getattr(route, "methods", ())
        if not route.path.startswith(NOT_FOR_CLIENTS)
    }
    assert {(method, path) for method, path, _ in operations()} == routes


def test_references_resolve_and_names_are_unique() -> None:
    schemas = document()["components"]["schemas"]
    named = set(re.findall(r"#/components/schemas/(\w+)", str(document())))
    assert named == set(schemas)
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))


@pytest.fixture
def secret(up: Coordinator) -> str:
    """A key with credit that may do everything."""
    key = up.books.open_account(50_000_000)
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        return credentials.create_api_key(connection, key.account_id, "all", scopes=["inference", "keys"]).secret


@pytest.mark.parametrize(
    ("path", "name", "body"), examples(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_example_runs(
    up: Coordinator, real_agent: Process, secret: str, path: str, name: str, body: dict[str, Any]
) -> None:
    with up.client(secret) as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"]
    assert kind == ("text/event-stream" if body.get("stream") else "application/json")


def test_the_document_is_served_to_everybody(up: Coordinator) -> None:
    with up.client() as client:
        assert client.get("/openapi.json").json() == document()


async def _keep_alive(machines: list[Machine]) -> None:
    """However long it takes, none of them goes stale."""
    while True:
        for machine in machines:
            await machine.heartbeat()
        await asyncio.sleep(HEARTBEAT_INTERVAL_SECONDS)


@pytest.mark.timeout(900)
async def test_schemathesis_finds_nothing(up: Coordinator, secret: str, tmp_path: Path) -> None:
    """All of its checks. Every model that it can read of is served, so that no 503 is a right answer."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run"]
    command += [f"{up.url}/openapi.json", "--checks", "all"]
    options = ["-H", f"Authorization: Bearer {secret}", "--max-examples", "25", "--request-timeout", "60", "--no-color"]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as beating:
        models = Catalog.built_in(development=True).active()
        machines = [await stack.enter_async_context(Machine(up.url, model=model.id).connected()) for model in models]
        beats = beating.create_task(_keep_alive(machines))
        done = await asyncio.to_thread(
            subprocess.run, [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        beats.cancel()
    assert done.returncode == 0, done.stdout[-6_000:]
