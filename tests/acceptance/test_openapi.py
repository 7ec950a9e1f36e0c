"""The OpenAPI document says what the program does: its operations are the routes, and its examples run."""

from __future__ import annotations

import asyncio
import os
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
from domain.kinds import TEXT
from domain.protocol import ENDPOINTS, HEARTBEAT_INTERVAL_SECONDS
from tests.support.machine import Machine
from tests.support.processes import Coordinator, Process

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
SEED = os.environ.get("SEED", "1")
"""Of the requests that schemathesis makes up; empty for another one each time."""
EXAMPLES = os.environ.get("EXAMPLES", "25")
METHODS = ("get", "post", "put", "patch", "delete")
MEDIA_MODELS = [model for model in Catalog.built_in(development=True).active() if model.kind != TEXT]
NOT_FOR_CLIENTS = (
    "/internal/",
    "/link",
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
        if method == "post" and "requestBody" in operation
        for name, example in operation["requestBody"]["content"].get("application/json", {}).get("examples", {}).items()
    ]


def test_every_route_is_described_and_nothing_else_is() -> None:
    async def no_lifespan(_: object) -> None: ...

    app = make_app(no_lifespan, development=True, origins=())  # type: ignore[arg-type]
    every = [route for one in app.routes for route in getattr(getattr(one, "original_router", None), "routes", [one])]
    routes = {
        (method.lower(), re.sub(r"\{(\w+):path\}", r"{\1}", route.path))  # type: ignore[attr-defined]
        for route in every
        for method in getattr(route, "methods", None) or ()
        if not route.path.startswith(NOT_FOR_CLIENTS)  # type: ignore[attr-defined]
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
async def test_an_example_runs(
    up: Coordinator, real_agent: Process, secret: str, path: str, name: str, body: dict[str, Any]
) -> None:
    async with AsyncExitStack() as machines:
        for model in MEDIA_MODELS:
            if path == ENDPOINTS[model.kind]:
                await machines.enter_async_context(Machine(up.url, model=model.id, kind=model.kind).connected())
        with up.client(secret) as client:
            answer = await asyncio.to_thread(client.post, path, json=body)
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"]
    assert kind == ("text/event-stream" if body.get("stream") else "application/json")


def test_the_document_is_served_to_everybody(up: Coordinator) -> None:
    with up.client() as client:
        assert client.get("/openapi.json").json() == document()


async def _beat(machine: Machine) -> None:
    """Keep a machine connected for longer than the coordinator waits for a sign of life."""
    while True:
        await asyncio.sleep(HEARTBEAT_INTERVAL_SECONDS)
        await machine.heartbeat()


@pytest.mark.timeout(3_600)
async def test_schemathesis_finds_nothing(up: Coordinator, secret: str, tmp_path: Path) -> None:
    """All of its checks. Every model that it can read of is served, so that no 503 is a right answer."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run"]
    command += [f"{up.url}/openapi.json", "--checks", "all", "--max-examples", EXAMPLES]
    options = ["-H", f"Authorization: Bearer {secret}", "--request-timeout", "60", "--no-color"]
    options += ["--seed", SEED] if SEED else []
    async with AsyncExitStack() as machines:
        for model in Catalog.built_in(development=True).active():
            machine = Machine(up.url, model=model.id, kind=model.kind)
            beating = asyncio.create_task(_beat(await machines.enter_async_context(machine.connected())))
            machines.callback(beating.cancel)
        done = await asyncio.to_thread(
            subprocess.run, [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    print(done.stdout[done.stdout.rfind("= SUMMARY =") :])
    assert done.returncode == 0, done.stdout[-6_000:]
