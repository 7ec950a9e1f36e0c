"""The ``darkbloom`` command as a process: exit codes, signals, and what it prints."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.testing.fake_coordinator import FakeConnection, FakeCoordinator, bounded
from agent.testing.tiny_model import build_reciting_model

ROOT = Path(__file__).parents[2]
CANARY = "canary-7145"
ENDLESS = [b"to", b"mor", b"row", b" and "]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "endless"
    return build_reciting_model(folder, ENDLESS, endless=True, context_length=100_000)


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "DARKBLOOM_HOME": str(home), **more}


def run(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=ROOT,
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Process:
    """A running agent whose stderr is collected."""

    def __init__(self, process: asyncio.subprocess.Process, connection: FakeConnection) -> None:
        self.process = process
        self.connection = connection
        self.coordinator_url = ""

    async def ended(self) -> tuple[int, str]:
        _, stderr = await bounded(self.process.communicate())
        assert self.process.returncode is not None
        return self.process.returncode, stderr.decode()


@asynccontextmanager
async def serving(home: Path, model: Path, *arguments: str, **more: str) -> AsyncIterator[Process]:
    async with FakeCoordinator() as coordinator:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "serve", "--model", str(model), *arguments),
            cwd=ROOT,
            env=environment(home, DARKBLOOM_COORDINATOR_URL=coordinator.url, **more),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            running = Process(process, await coordinator.connection())
            running.coordinator_url = coordinator.url
            yield running
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def chat(content: str = "hi", **members: Any) -> dict[str, Any]:
    return {"model": "endless", "messages": [{"role": "user", "content": content}], "temperature": 0, **members}


class TestStart:
    def test_the_version_line_ends_with_the_version(self, tmp_path: Path) -> None:
        done = run(tmp_path, "--version")
        name, version = done.stdout.split()
        assert (done.returncode, name) == (0, "darkbloom")
        assert all(part.isdigit() for part in version.split("."))

    def test_help_needs_no_mlx(self) -> None:
        code = (
            "import sys; from click.testing import CliRunner; from agent.cli import darkbloom;"
            "result = CliRunner().invoke(darkbloom, ['serve', '--help']);"
            "print(result.exit_code, 'mlx' in sys.modules, 'websockets' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["0", "False", "False"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("serve",),
            ("serve", "--model", "x", "--coordinator", "ftp://x"),
            ("serve", "--model", "x", "--max-concurrent", "65"),
            ("serve", "--model", "x", "--log-level", "loud"),
            ("unknown",),
        ],
    )
    def test_usage_errors(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        done = run(tmp_path, *arguments)
        assert done.returncode == 2
        assert done.stderr

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        done = run(tmp_path / "home", "serve", "--model", str(tmp_path), "--coordinator", "ws://127.0.0.1:9")
        assert done.returncode == 5
        assert f"{tmp_path} has no config.json" in done.stderr

    def test_an_architecture_that_is_not_supported(self, tmp_path: Path) -> None:
        folder = build_reciting_model(tmp_path / "strange", [b"a"])
        config = (folder / "config.json").read_text().replace('"llama"', '"strange_type"')
        (folder / "config.json").write_text(config)
        done = run(tmp_path / "home", "serve", "--model", str(folder), "--coordinator", "ws://127.0.0.1:9")
        assert done.returncode == 5
        assert "Model type strange_type not supported" in done.stderr
        assert str(folder) in done.stderr

    def test_a_corrupt_identity(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "identity.pem").write_text("x")
        done = run(tmp_path, "serve", "--model", str(model), "--coordinator", "ws://127.0.0.1:9")
        assert done.returncode == 1
        assert "identity.pem does not hold a P-256 private key" in done.stderr

    def test_a_second_instance_names_the_first(self, tmp_path: Path, model: Path) -> None:
        with (tmp_path / "provider.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("4242\n")
            lock.flush()
            done = run(tmp_path, "serve", "--model", str(model), "--coordinator", "ws://127.0.0.1:9")
        assert done.returncode == 9
        assert "PID 4242" in done.stderr


class TestServe:
    async def test_it_serves_drains_and_keeps_content_out_of_its_log(self, tmp_path: Path, model: Path) -> None:
        token = tmp_path / "token"
        token.write_text("eigeninference-pt-test\n")
        more = {"DARKBLOOM_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": ""}
        async with serving(tmp_path / "home", model, "--verbose", "--max-concurrent", "3", **more) as agent:
            connection = agent.connection
            assert connection.register.auth_token == "eigeninference-pt-test"
            capabilities = connection.register.privacy_capabilities
            assert capabilities.env_scrubbed
            assert capabilities.core_dumps_disabled
            heartbeat = await connection.heartbeat()
            assert heartbeat.backend_capacity is not None
            assert heartbeat.backend_capacity.slots[0].max_concurrency == 3
            await (await connection.submit(chat(CANARY, max_tokens=8, stream=True))).completed()
            await (await connection.submit(CANARY.encode())).failed()
            job = await connection.submit(chat(CANARY, max_tokens=200, stream=True))
            await job.chunk(1)
            agent.process.send_signal(signal.SIGTERM)
            assert (await job.completed()).usage.completion_tokens == 200
            code, log = await agent.ended()
            assert code == 0
            assert connection.socket.close_code == 1000
        assert f"connected to {agent.coordinator_url}; trust not reported yet; serving endless" in log
        assert "canary" not in log
        assert "morrow" not in log
        assert "pt-test" not in log
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
        assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["identity.pem", "provider.lock"]

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    async def test_a_second_signal_aborts(self, tmp_path: Path, model: Path, number: signal.Signals, code: int) -> None:
        async with serving(tmp_path, model) as agent:
            job = await agent.connection.submit(chat(max_tokens=90_000))
            await bounded(job.accepted.wait())
            await agent.connection.heartbeat()
            agent.process.send_signal(number)
            while (await agent.connection.heartbeat()).status != "draining":
                pass
            agent.process.send_signal(number)
            assert (await job.failed()).status_code == 503
            assert (await agent.ended())[0] == code

    async def test_once_serves_one_request(self, tmp_path: Path, model: Path) -> None:
        async with serving(tmp_path, model, "--once", "-q") as agent:
            await (await agent.connection.submit(chat(max_tokens=4))).completed()
            assert await agent.ended() == (0, "")
