"""Limits by requests and by tokens, of accounts and of keys, and the headers that tell of them (consumer API, 2.7).

Each gateway counts for itself: the limits protect it, they are no accounting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from starlette.types import Scope

from api.consumer.buckets import Buckets, Level, Rate
from api.errors import ANSWER_HEADERS, speaks_anthropic
from domain.errors import RateLimited
from domain.keys import Caller

RETRY_SECONDS_MAX = 60


class Defaults(NamedTuple):
    """What holds for an account without limits of its own. 0 means no limit."""

    requests_per_second: float = 0.0
    request_burst: int = 10
    tokens_per_minute: int = 0
    financial_per_second: float = 0.0
    financial_burst: int = 3
    wrong_credentials_per_minute: int = 0


class _Limit(NamedTuple):
    name: str
    rate: Rate


class RateLimits:
    def __init__(
        self,
        defaults: Defaults,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._defaults = defaults
        self._buckets = Buckets(clock)
        self._wall_clock = wall_clock

    def count_request(self, caller: Caller, scope: Scope) -> None:
        """Count an inference request. Raises RateLimited."""
        self._take("requests", self._request_limits(caller), 1, scope)

    def count_tokens(self, caller: Caller, tokens: int, scope: Scope) -> None:
        """Count the tokens that a request is expected to use. Raises RateLimited."""
        self._take("tokens", self._token_limits(caller), tokens, scope)

    def correct_tokens(self, caller: Caller, difference: int) -> None:
        """Count what was used beyond the expectation, or give back what was not."""
        for limit in self._token_limits(caller):
            self._buckets.take(limit.name, limit.rate, difference)

    def count_financial(self, caller: Caller, scope: Scope) -> None:
        """Count a request that manages keys or money. Raises RateLimited."""
        defaults = self._defaults
        rate = Rate(defaults.financial_per_second, defaults.financial_burst)
        is_limited = rate.per_second and caller.credential != "admin"
        limits = [_Limit(f"financial:{caller.account_id}", rate)] if is_limited else []
        self._take("requests", limits, 1, scope)

    def count_wrong_credential(self, address: str) -> None:
        """Count a credential that was none. Raises RateLimited when an address sends too many."""
        per_minute = self._defaults.wrong_credentials_per_minute
        if per_minute:
            limit = _Limit(f"credentials:{address}", Rate(per_minute / 60, per_minute))
            self._take("requests", [limit], 1, {"path": ""})

    def _request_limits(self, caller: Caller) -> list[_Limit]:
        own, defaults = caller.account_limits, self._defaults
        per_second = _first(own.requests_per_second, defaults.requests_per_second)
        limits = []
        if per_second:
            rate = Rate(per_second, own.request_burst or defaults.request_burst)
            limits.append(_Limit(f"requests:{caller.account_id}", rate))
        if caller.key.requests_per_minute:
            limits.append(_Limit(f"requests:{caller.key_id}", _a_minute(caller.key.requests_per_minute)))
        return limits

    def _token_limits(self, caller: Caller) -> list[_Limit]:
        own, defaults = caller.account_limits, self._defaults
        per_minute = _first(own.tokens_per_minute, defaults.tokens_per_minute)
        limits = []
        if per_minute:
            limits.append(_Limit(f"tokens:{caller.account_id}", _a_minute(per_minute)))
        if caller.key.tokens_per_minute:
            limits.append(_Limit(f"tokens:{caller.key_id}", _a_minute(caller.key.tokens_per_minute)))
        return limits

    def _take(self, what: str, limits: list[_Limit], amount: float, scope: Scope) -> None:
        """Take from all or from none, and leave word of the tightest in the answer's headers."""
        if not limits:
            return
        wait = max(self._buckets.wait_seconds(limit.name, limit.rate, amount) for limit in limits)
        if not wait:
            for limit in limits:
                self._buckets.take(limit.name, limit.rate, amount)
        levels = [self._buckets.level(limit.name, limit.rate) for limit in limits]
        tightest = min(levels, key=lambda level: level.remaining / level.rate.burst)
        headers = scope.get(ANSWER_HEADERS, {})
        headers |= self._headers(what, tightest, anthropic=speaks_anthropic(scope["path"]))
        if wait:
            headers["X-RateLimit-Reset"] = str(math.ceil(self._wall_clock() + wait))
            raise RateLimited(
                f"Too many {what} in a short time; wait {math.ceil(wait)} s.",
                retry_after_seconds=min(RETRY_SECONDS_MAX, max(1, math.ceil(wait))),
            )

    def _headers(self, what: str, level: Level, *, anthropic: bool) -> dict[str, str]:
        limit, remaining = str(int(level.rate.burst)), str(int(level.remaining))
        headers = {
            f"x-ratelimit-limit-{what}": limit,
            f"x-ratelimit-remaining-{what}": remaining,
            f"x-ratelimit-reset-{what}": duration(level.full_in_seconds),
        }
        if anthropic:
            full_at = datetime.fromtimestamp(self._wall_clock() + level.full_in_seconds, UTC)
            headers |= {
                f"anthropic-ratelimit-{what}-limit": limit,
                f"anthropic-ratelimit-{what}-remaining": remaining,
                f"anthropic-ratelimit-{what}-reset": full_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: 350ms, 12s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _a_minute(amount: float) -> Rate:
    return Rate(amount / 60, amount)


def _first(own: float | None, default: float) -> float:
    return default if own is None else own
