"""A RabbitMQ node of one's own, that a test may stop and start."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pika
import pika.exceptions

from tests.conftest import missing_service
from tests.support.processes import eventually

SCRIPTS = Path("/usr/lib/rabbitmq/bin")
START_SECONDS_MAX = 120.0


def free_port() -> int:
    """A port for a server that will be away for a while: below those that the system gives to clients, because one that
    tries to connect to such a port in the meantime can be given that very port, and keep it."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class RabbitmqNode:
    """Durable queues outlive ``stop`` and ``start``."""

    def __init__(self, folder: Path) -> None:
        self._server = SCRIPTS / "rabbitmq-server" if SCRIPTS.exists() else shutil.which("rabbitmq-server")
        if self._server is None:
            missing_service("a RabbitMQ server to start")
        self._folder = folder
        self._port = free_port()
        self._env = os.environ | {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"darkbloom-test-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}/"

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        with (self._folder / "server.out").open("ab") as out:
            self._process = subprocess.Popen(
                [str(self._server)], env=self._env, stdout=out, stderr=out, start_new_session=True
            )
        eventually(self._answers, "RabbitMQ to start", START_SECONDS_MAX)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def _answers(self) -> bool:
        assert self._process is not None
        ended = self._process.poll() is not None
        assert not ended, (self._folder / "server.out").read_text(errors="replace")[-3_000:]
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True
