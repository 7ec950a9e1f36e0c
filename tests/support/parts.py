"""The coordinator's processes apart, on one PostgreSQL and one RabbitMQ, as servers run them."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pika
import pika.exceptions

from adapters.scheduler.brokers import QUEUES
from tests.conftest import RABBITMQ_URL, missing_service
from tests.support.processes import Coordinator, Process, darkbloomd


def channel_to(url: str) -> pika.adapters.blocking_connection.BlockingChannel:
    return pika.BlockingConnection(pika.URLParameters(url)).channel()


@contextlib.contextmanager
def broker_of_its_own() -> Generator[str, None, None]:
    """The URL of a RabbitMQ that nobody else uses: a virtual host where this machine may make one, else the shared
    one with the product's queues gone before and after."""
    try:
        channel_to(RABBITMQ_URL).connection.close()
    except pika.exceptions.AMQPError:
        missing_service(f"RabbitMQ at {RABBITMQ_URL}")
    name = f"darkbloom-test-{secrets.token_hex(4)}"
    if not _rabbitmqctl("add_vhost", name):
        _delete_queues()
        yield RABBITMQ_URL
        _delete_queues()
        return
    try:
        user = pika.URLParameters(RABBITMQ_URL).credentials.username
        assert _rabbitmqctl("set_permissions", "-p", name, user, ".*", ".*", ".*")
        yield RABBITMQ_URL.rpartition("/")[0] + f"/{name}"
    finally:
        _rabbitmqctl("delete_vhost", name)


def _rabbitmqctl(*words: str) -> bool:
    try:
        done = subprocess.run(["rabbitmqctl", "-q", *words], check=False, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _delete_queues() -> None:
    channel = channel_to(RABBITMQ_URL)
    for queue in QUEUES:
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
            channel.queue_delete(name)
    channel.connection.close()


class Parts:
    """Starts processes on one database and one broker, with leases short enough to see one lapse."""

    def __init__(self, folder: Path, database: str, broker: str) -> None:
        self._folder = folder
        self.env = {
            "DARKBLOOM_DATABASE_URL": database,
            "DARKBLOOM_BROKER_URL": broker,
            "DARKBLOOM_INTERNAL_SECRET": secrets.token_hex(16),
            "DARKBLOOM_LEASE_SECONDS": "2",
            "DARKBLOOM_LEASE_RENEW_SECONDS": "0.5",
            "DARKBLOOM_LEASE_GRACE_SECONDS": "1",
            "DARKBLOOM_SWEEP_SECONDS": "0.5",
        }
        self._started: list[Process] = []

    def start(
        self, *words: str, name: str = "", env: dict[str, str] | None = None, command: list[str] | None = None
    ) -> Process:
        """Start one of them, or another ``command``. It is not waited for, so that several get ready together."""
        process = Process(name or words[0], command or darkbloomd(*words), self._folder, self.env | (env or {}))
        self._started.append(process)
        return process

    def coordinator(self, process: Process) -> Coordinator:
        """A gateway that was started, ready."""
        return Coordinator(process, self.env["DARKBLOOM_DATABASE_URL"])

    def stop(self) -> None:
        running = [process for process in self._started if process.popen.poll() is None]
        for process in running:
            process.popen.send_signal(signal.SIGTERM)
        for process in running:
            process.terminate()

    def logs(self) -> str:
        return "".join(process.log() for process in self._started)
