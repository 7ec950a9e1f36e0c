"""Files with secrets: written at once, durably, and closed to others."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path


def is_closed_to_others(path: Path) -> bool:
    """Raises OSError, FileNotFoundError included."""
    return not stat.S_IMODE(path.stat().st_mode) & 0o077


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in the place of another, whole or not at all."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
