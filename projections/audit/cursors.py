"""Cursors of pages: positions of the log, written so that nobody is tempted to make one up."""

from __future__ import annotations

import base64
import binascii

from domain.errors import InvalidRequest

_POSITION_MAX = 2**62


def write_cursor(*positions: int) -> str:
    return base64.urlsafe_b64encode(".".join(map(str, positions)).encode()).decode().rstrip("=")


def read_cursor(cursor: str, count: int) -> list[int]:
    """Raises InvalidRequest when it is not a cursor of so many positions."""
    try:
        text = base64.b64decode(cursor[:200] + "=" * (-len(cursor[:200]) % 4), altchars=b"-_", validate=True)
        positions = [int(part) for part in text.decode("ascii").split(".")]
    except (binascii.Error, ValueError):
        positions = []
    if len(positions) != count or not all(0 <= position <= _POSITION_MAX for position in positions):
        raise InvalidRequest("'cursor' is not one that this endpoint gave out.", param="cursor")
    return positions
