"""An operator asks why a machine gets no work: over HTTP, in the agent's log, and in the walk-through of the docs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from adapters.postgres.credentials import create_provider_token
from domain.routing import Cost, Reason
from tests.support.machine import MODEL, Job, Machine
from tests.support.processes import Coordinator, Key, agent, darkbloomd, eventually

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
    if key in ("code", "message", "fix", "state", "status", "summary", "trust_level", "minimum_trust") or isinstance(
        value, bool
    ):
        return value
    return "null" if value is None and key == "put_aside_until" else "…"


def line_shape(line: str) -> str:
    """The same for a line of text: ids, times, numbers and the widths of columns may differ."""
    for pattern, name in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
        (r"acct_\w+", "ACCOUNT"),
        (r"\b(?=\w*[0-9])[0-9a-f]{8}([0-9a-f]{4})?\b", "ID"),
        (r"  +", " "),
    ):
        line = re.sub(pattern, name, line)
    return line


def table_shape(lines: list[str]) -> tuple[str, ...]:
    """Of a table of costs the columns that are always there, because terms that are nothing are left out."""
    assert len(lines[0].split("  ")) > 1
    always = ("machine", "in flight", "total", "prefill", "decode", "reputation", "not eligible")
    return tuple(name for name in always if name in lines[0])


class Walk:
    """Follows the page: each command is run as it stands there, against this coordinator."""

    def __init__(self, shown: list[tuple[str, str]], up: Coordinator, key: str) -> None:
        self._shown = iter(shown)
        self._url = up.url
        self._dsn = up.books.dsn
        self._key = key
        self._machine_id = ""

    def ask(self) -> None:
        """The next command asks over HTTP."""
        command, output = next(self._shown)
        path = re.fullmatch(r'curl -s -H "Authorization: Bearer \$KEY" http://127\.0\.0\.1:8080(\S+)', command)
        assert path is not None, command
        with httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {self._key}"}) as client:
            answer = client.get(path[1].replace("$ID", self._machine_id)).json()
        assert shape(answer) == shape(json.loads(output)), json.dumps(answer, indent=2)
        self._machine_id = answer.get("id") or answer["providers"][0]["id"]

    def run(self) -> tuple[list[str], list[str]]:
        """The next command is the coordinator's own; the lines that the page shows, and those that came."""
        command, output = next(self._shown)
        program, *words = command.split()
        assert program == "darkbloomd"
        done = subprocess.run(
            darkbloomd(*words),
            env=os.environ | {"DARKBLOOM_DATABASE_URL": self._dsn},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return output.splitlines(), done.stdout.splitlines()


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
    walk = Walk(shown, up, owner.secret)
    with agent(tmp_path, up.url, tiny_model) as process:
        eventually(lambda: MODEL in up.models(owner.secret), "the agent to be routable")
        up.books.rows("DELETE FROM model_demand RETURNING 1")
        walk.ask()
        walk.ask()
        told, came = walk.run()
        assert line_shape(told[0]) == line_shape(came[0])
        assert table_shape(told[1:]) == table_shape(came[1:])
        assert line_shape(told[-1]) == line_shape(came[-1])
        log = process.log()
    walk.ask()
    told, came = walk.run()
    assert {line_shape(line) for line in told} <= {line_shape(line) for line in came}, came
    with pytest.raises(StopIteration):
        walk.run()
    for line in re.findall(r"^\d\d:\d\d:\d\d INFO +(.*)$", PAGE.read_text(), re.MULTILINE):
        assert line.replace("ws://127.0.0.1:8080", up.url.replace("http", "ws")) in log
