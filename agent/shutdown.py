"""The two signals that end the agent: the first drains, the second aborts (provider agent, section 13.3)."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable
from typing import TypeVar

from agent.errors import AgentStopping

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DEADLINE_PASSED_EXIT_CODE = 9

T = TypeVar("T")


class Shutdown:
    """What was asked for so far, and the exit code that follows from it."""

    def __init__(self, drain_timeout_seconds: float) -> None:
        self.drain_timeout_seconds = drain_timeout_seconds
        self.drain = asyncio.Event()
        self.abort = asyncio.Event()
        self.exit_code = 0

    def listen(self) -> None:
        """Take over the signals of this process; on its event loop, in the main thread."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.on_signal, number)

    def on_signal(self, number: signal.Signals) -> None:
        if not self.drain.is_set():
            _log.info("%s: finishing accepted work; a second signal aborts it", number.name)
            self.drain.set()
        elif not self.abort.is_set():
            _log.warning("%s: aborting", number.name)
            self.exit_code = 128 + number
            self.abort.set()

    def deadline_passed(self) -> None:
        """The drain took too long: abort what is left."""
        _log.warning("accepted work did not finish in %.0f s; aborting it", self.drain_timeout_seconds)
        self.exit_code = _DEADLINE_PASSED_EXIT_CODE
        self.abort.set()

    async def unless_draining(self, awaitable: Awaitable[T]) -> T:
        """Wait for ``awaitable``, but no longer than until the first signal.

        Raises:
            AgentStopping: the signal came first; ``awaitable`` is cancelled.
        """
        wanted = asyncio.ensure_future(awaitable)
        signalled = asyncio.ensure_future(self.drain.wait())
        try:
            await asyncio.wait((wanted, signalled), return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            raise AgentStopping()
        finally:
            signalled.cancel()
            wanted.cancel()
