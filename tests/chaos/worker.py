"""The process that dies: ``python -m tests.chaos.worker URL FOLDER SEED WRITER POINT OCCURRENCE COMMANDS``.

It runs random business through one writer, from threads and from coroutines, until it is killed, has run so many
commands, or its standard input ends. In the folder it keeps ``intents``, what each batch is about to commit, and
``acknowledged``, what the writer said was committed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from adapters.postgres.writer import LedgerWriter
from domain.errors import DarkbloomError, LedgerUnavailable
from tests.chaos.faulty_writer import WRITERS
from tests.support.random_business import random_commands

COROUTINES = 8
THREADS = 4


async def work(writer: LedgerWriter, commands: Iterator[Any], acknowledged: int, stopping: threading.Event) -> None:
    async def customer(run: Callable[[Any], Awaitable[Any]]) -> None:
        for command in commands:
            if stopping.is_set():
                return
            try:
                await run(command)
            except LedgerUnavailable:
                await asyncio.sleep(0.02)
            except DarkbloomError:
                continue
            else:
                os.write(acknowledged, f"{command.correlation_id}\n".encode())

    def in_a_thread(command: Any) -> Awaitable[Any]:
        return asyncio.to_thread(writer.execute, command)

    await asyncio.gather(*map(customer, [writer.run] * COROUTINES + [in_a_thread] * THREADS))


def marked(seed: str, count: int) -> Iterator[Any]:
    """Random commands, each with a correlation id of its own, by which its events are found again."""
    for number, command in zip(range(count), random_commands(Random(seed)), strict=False):
        yield msgspec.structs.replace(command, correlation_id=f"{seed}-{number}")


def main() -> None:
    url, folder, seed, kind, point, occurrence, count = sys.argv[1:]
    files = [
        os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("intents", "acknowledged")
    ]
    writer = WRITERS[kind](url, files[0], point, int(occurrence))
    stopping = threading.Event()

    def stop_at_end_of_input() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    writer.start()
    asyncio.run(work(writer, marked(seed, int(count)), files[1], stopping))
    writer.stop()


if __name__ == "__main__":
    main()
