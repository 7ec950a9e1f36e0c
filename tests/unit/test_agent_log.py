"""The log shows classes and places of exceptions, never what they say."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest

from agent.log import ContentFreeFormatter, describe, guard_loop, printable

CANARY = "canary-7142"


def failing() -> Exception:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        return error


def test_a_described_exception_names_class_and_place() -> None:
    assert describe(failing()).startswith("ValueError at test_agent_log.py:")
    assert describe(ValueError(CANARY)) == "ValueError"


def test_a_traceback_in_the_log_holds_no_message() -> None:
    error = failing()
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "it failed", (), (ValueError, error, error.__traceback__))
    text = ContentFreeFormatter().format(record)
    assert "ValueError" in text
    assert "in failing" in text
    assert CANARY not in text


def test_the_event_loops_own_reports_hold_no_message(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        guard_loop(loop)
        loop.call_exception_handler({"message": CANARY, "exception": failing(), "future": CANARY})

    asyncio.run(main())
    assert "ValueError at" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("way", ["raise ValueError(text)", "threading.Thread(target=int, args=(text,)).start()"])
def test_uncaught_exceptions_hold_no_message(way: str) -> None:
    code = f"import threading; from agent.log import configure; configure('debug'); text = 'canary-' + '7142'; {way}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError" in done.stderr
    assert CANARY not in done.stderr


def test_the_socket_librarys_frames_are_never_logged() -> None:
    code = (
        "import logging; from agent.log import configure; configure('debug');"
        "import websockets; print(logging.getLogger('websockets.client').isEnabledFor(logging.INFO))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_text_from_the_network_stays_on_one_line() -> None:
    assert printable("a\nb\x1b[0m") == "a b [0m"
    assert len(printable("x" * 5000)) == 1000
