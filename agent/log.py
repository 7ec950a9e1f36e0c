"""Diagnostics on stderr, and the guard that keeps request content out of them.

An exception's message, and the values in its frames, can hold a piece of a prompt. So a log line never shows more of an
exception than its class and the source line that raised it, at any level (provider agent, section 14, duty 7).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

LEVELS = ("debug", "info", "warning", "error")

# Their debug level prints frames, headers or texts.
_TALKATIVE = ("websockets", "asyncio", "httpx", "httpcore", "urllib3", "filelock", "huggingface_hub", "transformers")

_log = logging.getLogger("agent")


def describe(error: BaseException) -> str:
    """Class and place of an exception, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def printable(text: str, length_max: int = 1_000) -> str:
    """Text that came over the network, as it may stand in one log line."""
    return "".join(character if character.isprintable() else " " for character in text[:length_max])


class ContentFreeFormatter(logging.Formatter):
    """Formats a record's exception by class and places only."""

    def formatException(  # noqa: N802 - the name is logging's
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        error = ei[1]
        if error is None:
            return ""
        places = "".join(
            f"\n  {Path(frame.filename).name}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        )
        return type(error).__name__ + places


def configure(level: str) -> None:
    """Send the log to stderr from ``level`` upwards and close every way around the formatter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ContentFreeFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def guard_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Replace the loop's exception handler, which would print the exception's message and the task's repr."""
    loop.set_exception_handler(_uncaught_in_loop)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("uncaught", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log.critical("uncaught in a thread", exc_info=args.exc_value)


def _uncaught_in_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    _log.error("uncaught in the event loop: %s", describe(error) if error else "no exception")
