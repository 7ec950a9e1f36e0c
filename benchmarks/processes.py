"""Processes that a benchmark runs beside itself: coordinators, fake machines and yardsticks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil

from api.demo import Process


def start(stack: ExitStack, folder: Path, name: str, *words: str, python: str = sys.executable, **more: str) -> Process:
    """``python -m WORDS`` with further environment variables; the stack ends it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DARKBLOOM_")}
    environment = kept | {"PYTHONUNBUFFERED": "1"} | more
    process = Process(name, [python, "-m", *words], environment, folder / f"{name}.log")
    stack.callback(process.stop)
    return process


def url_of(process: Process) -> str:
    """The address in the line that a process prints when it is ready."""
    return next(word.rstrip(",.") for word in process.first_line().split() if word.startswith("http://"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(*processes: Process) -> float:
    times = [psutil.Process(process.pid).cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


def resident_bytes(process: Process) -> int:
    resident: int = psutil.Process(process.pid).memory_info().rss
    return resident


def darkbloomd_output(dsn: str, *words: str) -> str:
    """What a ``darkbloomd`` command prints that works on a database."""
    environment = os.environ | {"DARKBLOOM_DATABASE_URL": dsn}
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"darkbloomd {words[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
