"""Images that wait to be fetched by a signed URL (consumer API, section 10.4).

They are in this process's memory alone, for an hour at most, and go with it. When there are too many, the oldest make
room.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

FILE_SECONDS = 3_600
BYTES_MAX = 256 * 1024 * 1024


class _Kept(NamedTuple):
    content: bytes
    expires_at: int


class ImageFiles:
    def __init__(self, clock: Callable[[], float] = time.time, *, bytes_max: int = BYTES_MAX) -> None:
        self._clock = clock
        self._bytes_max = bytes_max
        self._key = secrets.token_bytes(32)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    def keep(self, content: bytes) -> str:
        """Keep an image; returns the part of its URL that follows the folder."""
        self.forget_expired()
        name, expires_at = f"{secrets.token_hex(16)}.png", int(self._clock()) + FILE_SECONDS
        self._kept[name] = _Kept(content, expires_at)
        self._bytes += len(content)
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._kept)))
        return f"{name}?exp={expires_at}&sig={self._signature(name, str(expires_at))}"

    def find(self, name: str, expires_at: str, signature: str) -> bytes | None:
        """The image, when the signature is ours and its hour is not over."""
        self.forget_expired()
        expected = self._signature(name, expires_at).encode()
        if not hmac.compare_digest(expected, signature.encode("utf-8", "replace")):
            return None
        kept = self._kept.get(name)
        return kept.content if kept is not None else None

    def forget_expired(self) -> None:
        now = self._clock()
        while self._kept:
            name, kept = next(iter(self._kept.items()))
            if kept.expires_at > now:
                return
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._bytes -= len(self._kept.pop(name).content)

    def _signature(self, name: str, expires_at: str) -> str:
        message = f"{name}:{expires_at}".encode("utf-8", "replace")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
