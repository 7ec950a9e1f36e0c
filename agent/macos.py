"""Questions that macOS answers through its own command line tools."""

from __future__ import annotations

import subprocess

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def ask(*command: str, timeout_seconds: float = 10.0) -> str:
    """What the tool prints, or an empty text when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=True, env={"PATH": _PATH}
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def number(text: str) -> int:
    """A whole number that a tool printed; 0 when it printed something else."""
    return int(text) if text.strip().isdigit() else 0


def value_after(text: str, label: str) -> str:
    """The rest of the first line of ``text`` that starts with ``label`` and a colon."""
    for line in text.splitlines():
        name, colon, value = line.strip().partition(":")
        if colon and name == label:
            return value.strip()
    return ""
