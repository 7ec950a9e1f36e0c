"""Limits of what strangers may try: by network address, and by account for codes that are wrong.

Each gateway counts for itself, as the other rate limits do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.requests import Request

from api.consumer.buckets import Buckets, Rate
from domain.errors import RateLimited

HOUR = 3_600.0
WRONG_CODES_AN_HOUR_MAX = 10
RETRY_SECONDS_MAX = 60


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


class IdentityLimits:
    """0 means no limit."""

    def __init__(
        self, *, sign_ins_per_hour: int, device_requests_per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._buckets = Buckets(clock, idle_seconds_max=HOUR)
        self._sign_ins = Rate(sign_ins_per_hour / HOUR, sign_ins_per_hour)
        self._device_requests = Rate(device_requests_per_minute / 60, device_requests_per_minute)
        self._wrong_codes = Rate(WRONG_CODES_AN_HOUR_MAX / HOUR, WRONG_CODES_AN_HOUR_MAX)

    def count_sign_in(self, address: str) -> None:
        """Count a code that somebody asked to be sent. Raises RateLimited."""
        self._take(f"sign-in:{address}", self._sign_ins)

    def count_device_request(self, address: str) -> None:
        """Raises RateLimited."""
        self._take(f"device:{address}", self._device_requests)

    def count_typed_code(self, account_id: str) -> None:
        """Count a code before it is known to be right, so that many at once are bounded too. Raises RateLimited."""
        self._take(f"codes:{account_id}", self._wrong_codes)

    def forgive_typed_code(self, account_id: str) -> None:
        """It was right."""
        self._buckets.take(f"codes:{account_id}", self._wrong_codes, -1)

    def _take(self, name: str, rate: Rate) -> None:
        if not rate.burst:
            return
        wait = self._buckets.wait_seconds(name, rate, 1)
        if wait:
            seconds = math.ceil(wait)
            raise RateLimited(
                f"Too many attempts; wait {seconds} s.", retry_after_seconds=min(RETRY_SECONDS_MAX, seconds)
            )
        self._buckets.take(name, rate, 1)
