"""One agent per state root: an advisory lock on ``provider.lock`` (provider agent, section 3.4)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.errors import AlreadyRunning


class InstanceLock:
    """Held from construction until ``release`` or the end of the process, however it ends."""

    def __init__(self, home: Path) -> None:
        """Take the lock.

        Raises:
            AlreadyRunning: another process holds it; the message names its PID.
        """
        path = home / "provider.lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise AlreadyRunning(
                f"The agent is already running as PID {owner} (it holds {path}). Stop it first: kill {owner}"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)
