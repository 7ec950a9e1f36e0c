"""Conversations are remembered by salt, within bounds, and not for long."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from agent.engine import prompt_cache
from agent.engine.prompt_cache import PromptCache

ONE, OTHER = "a" * 64, "b" * 64


@dataclass
class Fake:
    tokens: list[int]
    size_bytes: int = 10
    trimmable: bool = True

    def cut(self, length: int) -> Fake | None:
        if length == len(self.tokens):
            return self
        return Fake(self.tokens[:length], self.size_bytes) if self.trimmable else None


def tokens(found: Fake | None) -> list[int] | None:
    return found.tokens if found else None


def test_the_longest_common_beginning_is_found_but_never_the_whole_prompt() -> None:
    cache = PromptCache[Fake](1000)
    cache.keep(ONE, Fake([1, 2, 3, 4, 5, 6]), 0)
    cache.keep(ONE, Fake([1, 2, 3, 4, 9]), 0)
    assert tokens(cache.find(ONE, [1, 2, 3, 4, 5, 6, 7], 0)) == [1, 2, 3, 4, 5, 6]
    assert tokens(cache.find(ONE, [1, 2, 3, 4, 5, 6], 0)) == [1, 2, 3, 4, 5]
    assert cache.find(ONE, [1, 2, 8, 9], 0) is None


def test_nothing_is_found_under_another_salt() -> None:
    cache = PromptCache[Fake](1000)
    cache.keep(ONE, Fake([1, 2, 3, 4, 5]), 0)
    assert cache.find(OTHER, [1, 2, 3, 4, 5, 6], 0) is None


def test_a_state_that_cannot_go_back_serves_only_what_goes_on_from_it() -> None:
    cache = PromptCache[Fake](1000)
    cache.keep(ONE, Fake([1, 2, 3, 4, 5], trimmable=False), 0)
    assert cache.find(ONE, [1, 2, 3, 4, 9, 9], 0) is None
    assert tokens(cache.find(ONE, [1, 2, 3, 4, 5, 6], 0)) == [1, 2, 3, 4, 5]


def test_a_longer_state_takes_the_place_of_its_beginning() -> None:
    cache = PromptCache[Fake](1000)
    cache.keep(ONE, Fake([1, 2, 3, 4]), 0)
    cache.keep(OTHER, Fake([1, 2, 3, 4]), 0)
    cache.keep(ONE, Fake([1, 2, 3, 4, 5]), 0)
    assert (len(cache), cache.size_bytes) == (2, 20)


def test_the_least_recently_used_goes_first() -> None:
    cache = PromptCache[Fake](20)
    cache.keep(ONE, Fake([1] * 5), 0)
    cache.keep(ONE, Fake([2] * 5), 0)
    assert cache.find(ONE, [1] * 6, 1) is not None
    cache.keep(ONE, Fake([3] * 5), 2)
    assert cache.find(ONE, [2] * 6, 3) is None
    assert cache.find(ONE, [1] * 6, 3) is not None


def test_a_state_beyond_the_bound_is_not_kept() -> None:
    cache = PromptCache[Fake](20)
    cache.keep(ONE, Fake([1] * 5), 0)
    cache.keep(ONE, Fake([2] * 5, size_bytes=21), 0)
    assert (len(cache), cache.size_bytes) == (1, 10)


def test_what_is_idle_or_in_the_way_is_forgotten() -> None:
    cache = PromptCache[Fake](1000)
    cache.keep(ONE, Fake([1] * 5), 0)
    cache.keep(ONE, Fake([2] * 5), 100)
    cache.sweep(prompt_cache.IDLE_SECONDS_MAX, 0.5)
    assert len(cache) == 1
    cache.sweep(prompt_cache.IDLE_SECONDS_MAX, 0.95)
    assert (len(cache), cache.size_bytes) == (0, 0)


states = st.lists(st.tuples(st.sampled_from([ONE, OTHER]), st.lists(st.integers(0, 2), min_size=1, max_size=12)))


@given(states, st.lists(st.integers(0, 2), min_size=1, max_size=14))
def test_whatever_was_kept_the_bounds_hold_and_what_is_found_begins_the_prompt(
    kept: list[tuple[str, list[int]]], prompt: list[int]
) -> None:
    cache = PromptCache[Fake](55)
    for salt, content in kept:
        cache.keep(salt, Fake(content), 0)
    assert cache.size_bytes == 10 * len(cache) <= 55
    found = cache.find(ONE, prompt, 0)
    if found is not None:
        assert len(found.tokens) < len(prompt)
        assert prompt[: len(found.tokens)] == found.tokens
        assert any(salt == ONE and content[: len(found.tokens)] == found.tokens for salt, content in kept)
