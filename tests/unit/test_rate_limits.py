from __future__ import annotations

from typing import Any

import pytest

from api.consumer.rate_limits import Defaults, RateLimits, duration
from api.errors import ANSWER_HEADERS, headers_of
from domain.errors import RateLimited
from domain.keys import AccountLimits, Caller, KeySettings


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


ADA = Caller("ada", "key_a")


def scope(path: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"path": path, ANSWER_HEADERS: {}}


def limits(clock: Clock | None = None, **defaults: Any) -> RateLimits:
    return RateLimits(Defaults(**defaults), clock or Clock(), lambda: 1_800_000_000.0)


def test_without_limits_nothing_is_counted_and_nothing_is_said() -> None:
    unlimited, told = limits(), scope()
    for _ in range(1_000):
        unlimited.count_request(ADA, told)
        unlimited.count_tokens(ADA, 10**9, told)
        unlimited.count_financial(ADA, told)
        unlimited.count_wrong_credential("203.0.113.1")
    assert told[ANSWER_HEADERS] == {}


def test_requests_beyond_the_burst_are_refused_until_time_passes() -> None:
    clock = Clock()
    limited, told = limits(clock, requests_per_second=1, request_burst=2), scope()
    limited.count_request(ADA, told)
    assert told[ANSWER_HEADERS] == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "1s",
    }
    limited.count_request(ADA, told)
    with pytest.raises(RateLimited) as refused:
        limited.count_request(ADA, told)
    assert headers_of(refused.value)["Retry-After"] == "1"
    assert told[ANSWER_HEADERS]["X-RateLimit-Reset"] == "1800000001"
    assert told[ANSWER_HEADERS]["x-ratelimit-remaining-requests"] == "0"
    clock.now += 1
    limited.count_request(ADA, told)


def test_anthropics_paths_also_get_anthropics_headers() -> None:
    limited, told = limits(requests_per_second=1, request_burst=2), scope("/v1/messages")
    limited.count_request(ADA, told)
    assert told[ANSWER_HEADERS]["anthropic-ratelimit-requests-limit"] == "2"
    assert told[ANSWER_HEADERS]["anthropic-ratelimit-requests-remaining"] == "1"
    assert told[ANSWER_HEADERS]["anthropic-ratelimit-requests-reset"] == "2027-01-15T08:00:01Z"


def test_accounts_do_not_share_but_the_keys_of_one_do() -> None:
    limited = limits(requests_per_second=1, request_burst=1)
    limited.count_request(ADA, scope())
    limited.count_request(Caller("grace", "key_g"), scope())
    with pytest.raises(RateLimited):
        limited.count_request(Caller("ada", "key_b"), scope())


def test_a_key_has_limits_of_its_own_beside_its_accounts() -> None:
    narrow = Caller("ada", "key_n", key=KeySettings(requests_per_minute=1))
    limited, told = limits(requests_per_second=1, request_burst=10), scope()
    limited.count_request(narrow, told)
    assert told[ANSWER_HEADERS]["x-ratelimit-limit-requests"] == "1"
    with pytest.raises(RateLimited) as refused:
        limited.count_request(narrow, told)
    assert refused.value.retry_after_seconds == 60
    for _ in range(9):  # the refused one took nothing from the account
        limited.count_request(ADA, scope())


def test_an_account_can_have_other_limits_than_the_settings() -> None:
    limited = limits(requests_per_second=1, request_burst=1, tokens_per_minute=10)
    free = Caller("ada", "key_a", account_limits=AccountLimits(0, None, 0))
    for _ in range(100):
        limited.count_request(free, scope())
        limited.count_tokens(free, 1_000, scope())
    wide = Caller("grace", "key_g", account_limits=AccountLimits(1, 50, None))
    for _ in range(50):
        limited.count_request(wide, scope())
    with pytest.raises(RateLimited):
        limited.count_request(wide, scope())


def test_tokens_are_counted_as_expected_and_corrected_by_what_was_used() -> None:
    limited, told = limits(tokens_per_minute=600), scope()
    limited.count_tokens(ADA, 500, told)
    with pytest.raises(RateLimited) as refused:
        limited.count_tokens(ADA, 200, told)
    assert refused.value.retry_after_seconds == 10
    limited.correct_tokens(ADA, 50 - 500)
    limited.count_tokens(ADA, 200, told)
    assert told[ANSWER_HEADERS]["x-ratelimit-remaining-tokens"] == "350"
    limited.correct_tokens(ADA, 1_000)
    with pytest.raises(RateLimited) as refused:
        limited.count_tokens(ADA, 1, told)
    assert refused.value.retry_after_seconds == 60


def test_wrong_credentials_are_counted_by_address() -> None:
    limited = limits(wrong_credentials_per_minute=20)
    for _ in range(20):
        limited.count_wrong_credential("203.0.113.1")
    with pytest.raises(RateLimited):
        limited.count_wrong_credential("203.0.113.1")
    limited.count_wrong_credential("203.0.113.2")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.35, "350ms"), (1, "1s"), (59.2, "1m0s"), (90, "1m30s"), (600, "10m0s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
