"""Writers as the coordinator makes them, and ways to put many commands into one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from adapters.postgres.writer import InlineProjection, LedgerWriter
from domain.eventsourced import Written
from domain.ledger import Command
from projections.balances import Balances
from projections.open_requests import OpenRequests
from projections.usage import UsageEntries


def make_writer(url: str, *more: InlineProjection, **options: Any) -> LedgerWriter:
    """A writer that was not started, with the coordinator's inline projections and perhaps more."""
    return LedgerWriter(url, [Balances(), UsageEntries(), OpenRequests(), *more], **options)


@contextmanager
def running(url: str, *more: InlineProjection, **options: Any) -> Generator[LedgerWriter, None, None]:
    writer = make_writer(url, *more, **options)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


async def start_with(writer: LedgerWriter, commands: Sequence[Command[Any]]) -> list[Any]:
    """Queue commands on a writer that was not started and start it: they are its first batch.

    Returns each command's result or the exception that its caller got.
    """
    waiting = [asyncio.create_task(writer.run(command)) for command in commands]
    await asyncio.sleep(0)  # every task runs up to where it waits for its commit
    writer.start()
    return await asyncio.gather(*waiting, return_exceptions=True)


@contextmanager
def first_batch(
    url: str, commands: Sequence[Command[Any]], *more: InlineProjection, **options: Any
) -> Generator[tuple[LedgerWriter, list[Any]], None, None]:
    """A running writer whose first batch were these commands, and what became of them."""
    writer = make_writer(url, *more, **options)
    answers = asyncio.run(start_with(writer, commands))
    try:
        yield writer, answers
    finally:
        writer.stop()


class Sabotage:
    """An inline projection that runs a statement of the test's choice in the next batch that writes something."""

    needs_final_state = True

    def __init__(self) -> None:
        self.next: str | None = None

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        statement, self.next = self.next, None
        if statement is not None:
            yield statement, ()
