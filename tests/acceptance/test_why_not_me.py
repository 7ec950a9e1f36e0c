"""An operator asks why a machine gets no work: over HTTP, in the agent's log, and in the walk-through of the docs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from adapters.postgres.credentials import create_provider_token
from domain.routing import Cost, Reason
from tests.support.machine import MODEL, Job, Machine
from tests.support.processes import Coordinator, Key, agent, eventually

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "find-out-why-a-machine-gets-no-work.md"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}


@pytest.fixture
def owner(up: Coordinator) -> Key:
    return up.books.open_account(1_000_000)


@pytest.fixture
def token(up: Coordinator, owner: Key) -> str:
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        return create_provider_token(connection, owner.account_id)


@pytest.fixture
async def client(up: Coordinator, owner: Key) -> AsyncGenerator[httpx.AsyncClient, None]:
    headers = {"Authorization": f"Bearer {owner.secret}"}
    async with httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60.0) as connected:
        yield connected


async def the_machine(client: httpx.AsyncClient) -> dict[str, Any]:
    [listed] = (await client.get("/v1/me/providers")).json()["providers"]
    detailed = (await client.get(f"/v1/me/providers/{listed['id']}/routing")).json()
    assert {name: detailed[name] for name in listed} == listed
    return dict(detailed)


def codes(told: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in told["reasons"]]


async def test_a_machine_is_followed_from_work_to_silence(
    up: Coordinator, client: httpx.AsyncClient, token: str
) -> None:
    async with Machine(up.url, auth_token=token).connected():
        told = await the_machine(client)
        assert (told["connected"], told["status"], told["routable"], codes(told)) == (True, "online", True, [])
        [model] = told["per_model"]
        assert (model["id"], model["routable"]) == (MODEL, True)
        assert set(model["cost_ms"]) == {"total", *Cost.__struct_fields__}
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
        assert (await the_machine(client))["per_model"][0]["last_asked_at"] is not None
    told = await the_machine(client)
    assert (told["connected"], told["status"], told["routable"]) == (False, "offline", False)
    assert codes(told) == ["not_connected"]


async def test_a_full_machine_says_so(up: Coordinator, client: httpx.AsyncClient, token: str) -> None:
    async def hold(machine: Machine, job: Job) -> None:
        await job.accept()
        await job.cancelled.wait()

    async with Machine(up.url, hold, concurrency=1, auth_token=token).connected() as machine:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
        await asyncio.to_thread(eventually, lambda: machine.jobs, "the machine to be at work")
        told = await the_machine(client)
        assert (codes(told), told["requests_in_flight"], told["capacity"]) == (["full"], 1, 1)
        asking.cancel()


async def test_a_machine_that_fails_is_put_aside_and_told_at_once(
    up: Coordinator, client: httpx.AsyncClient, token: str
) -> None:
    async def fail(machine: Machine, job: Job) -> None:
        await machine.send_raw(
            json.dumps({"type": "inference_error", "request_id": job.job_id, "error": "x", "status_code": 500})
        )

    async with Machine(up.url, fail, auth_token=token).connected() as machine:
        for _ in range(3):
            assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 500

        def is_told() -> bool:
            return machine.status is not None and Reason.PUT_ASIDE.says in machine.status.reason

        await asyncio.to_thread(eventually, is_told, "the machine to be told")
        told = await the_machine(client)
        assert codes(told) == ["put_aside"]
        assert told["circuit_breaker"]["failures_in_row"] == 3
        assert told["circuit_breaker"]["put_aside_until"] is not None


async def test_a_machine_of_somebody_else_does_not_exist(up: Coordinator, client: httpx.AsyncClient) -> None:
    async with Machine(up.url).connected():
        machine_id = up.books.value("SELECT machine_id FROM fleet LIMIT 1")
        assert (await client.get("/v1/me/providers")).json() == {"providers": []}
        answer = await client.get(f"/v1/me/providers/{machine_id}/routing")
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "not_found"
    async with httpx.AsyncClient(base_url=up.url) as nobody:
        assert (await nobody.get("/v1/me/providers")).status_code == 401


# --- the walk-through, run -------------------------------------------------------------------------------------------


@pytest.fixture
def shown() -> list[tuple[str, str]]:
    """The commands of the page, each with its output."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [(command.removeprefix("$ "), output) for command, _, output in (block.partition("\n") for block in blocks)]


def shape(value: Any, key: str = "") -> Any:
    """What must be the same in the page and in reality: everything but measurements, names and times."""
    if isinstance(value, dict):
        return {name: shape(member, name) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(member) for member in value]
    if key in ("code", "message", "fix", "status", "summary", "trust_level", "minimum_trust") or isinstance(
        value, bool
    ):
        return value
    return "null" if value is None and key == "put_aside_until" else "…"


class Walk:
    """Follows the page: each command is run as it stands there, against this coordinator."""

    def __init__(self, shown: list[tuple[str, str]], url: str, key: str) -> None:
        self._shown = iter(shown)
        self._url = url
        self._key = key
        self._machine_id = ""

    def step(self) -> None:
        command, output = next(self._shown)
        path = re.fullmatch(r'curl -s -H "Authorization: Bearer \$KEY" http://127\.0\.0\.1:8080(\S+)', command)
        assert path is not None, command
        with httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {self._key}"}) as client:
            answer = client.get(path[1].replace("$ID", self._machine_id)).json()
        assert shape(answer) == shape(json.loads(output)), json.dumps(answer, indent=2)
        self._machine_id = answer.get("id") or answer["providers"][0]["id"]


@pytest.fixture
def home(tmp_path: Path, token: str) -> Path:
    """The folder of an agent that was linked to the owner's account."""
    folder = tmp_path / "agent-home"
    folder.mkdir(mode=0o700)
    file = folder / "auth_token"
    file.touch(mode=0o600)
    file.write_text(token)
    return folder


def test_the_walk_through_does_what_it_says(
    up: Coordinator, owner: Key, home: Path, tmp_path: Path, tiny_model: Path, shown: list[tuple[str, str]]
) -> None:
    eventually(lambda: not up.models(owner.secret), "the machines of other tests to leave")
    walk = Walk(shown, up.url, owner.secret)
    with agent(tmp_path, up.url, tiny_model) as process:
        eventually(lambda: MODEL in up.models(owner.secret), "the agent to be routable")
        up.books.rows("DELETE FROM model_demand RETURNING 1")
        walk.step()
        walk.step()
        log = process.log()
    walk.step()
    for line in re.findall(r"^\d\d:\d\d:\d\d INFO +(.*)$", PAGE.read_text(), re.MULTILINE):
        assert line.replace("ws://127.0.0.1:8080", up.url.replace("http", "ws")) in log
