"""Files that only their owner may read."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_directory(path: Path) -> Path:
    """Make ``path`` a directory of mode 0700 and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    tighten(path)
    return path


def tighten(path: Path) -> None:
    """Take the group's and the world's rights away from ``path``, with a warning when there were any."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        _log.warning("%s was open to other users (mode %o); its mode is now %o", path, mode, mode & ~_OTHERS)
        path.chmod(mode & ~_OTHERS)


def create_private(path: Path, content: bytes) -> None:
    """Create ``path`` with mode 0600, whole or not at all.

    Raises:
        FileExistsError: the file exists; it is left as it is.
    """
    fresh = _written_beside(path, content)
    try:
        # A link, unlike a rename, never replaces what is there.
        os.link(fresh, path)
    finally:
        fresh.unlink()


def replace_private(path: Path, content: bytes) -> None:
    """Write ``path`` with mode 0600 in place of what may be there, whole or not at all."""
    _written_beside(path, content).replace(path)


def _written_beside(path: Path, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
