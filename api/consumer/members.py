"""Checks for single members of a request body. Each raises InvalidRequest with the member's name and repeats nothing of
its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from domain.errors import InvalidRequest

Check = Callable[[str, Any], None]
"""From a member's name and its value, which is never null."""

STOP_CHARACTERS_MAX = 1_024


def check_members(body: dict[str, Any], checks: Mapping[str, Check]) -> None:
    """Run the check of every member that is there; null is the same as absent."""
    for name, check in checks.items():
        if body.get(name) is not None:
            check(name, body[name])


def boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)


def is_whole(value: Any) -> bool:
    """In JSON, 16.0 is a whole number too."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_whole(value) or not low <= value <= high:
            raise InvalidRequest(f"'{name}' must be a whole number from {low} to {high}.", param=name)

    return check


def token_limit(name: str, value: Any) -> None:
    if not is_whole(value) or not 0 <= value < 2**31:
        raise InvalidRequest(f"'{name}' must be a whole number of tokens.", param=name)


def number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidRequest(f"'{name}' must be a number from {low:g} to {high:g}.", param=name)

    return check


def positive(high: float) -> Check:
    def check(name: str, value: Any) -> None:
        number(0, high)(name, value)
        if value == 0:
            raise InvalidRequest(f"'{name}' must be above 0.", param=name)

    return check


def one_of(*texts: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in texts:
            raise InvalidRequest(f"'{name}' must be one of {', '.join(texts)}.", param=name)

    return check


def only(neutral: tuple[Any, ...], what: str) -> Check:
    """Lets through what asks for nothing. ``what`` is a sentence's beginning that says what is not supported."""

    def check(name: str, value: Any) -> None:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            raise InvalidRequest(f"{what} not supported here; leave '{name}' out.", param=name)

    return check


def stop_texts(name: str, value: Any, texts_max: int) -> list[str]:
    """The stop sequences in a list of them."""
    texts = [] if value is None else value
    if (
        not isinstance(texts, list)
        or len(texts) > texts_max
        or not all(isinstance(text, str) and 1 <= len(text) <= STOP_CHARACTERS_MAX for text in texts)
    ):
        raise InvalidRequest(
            f"'{name}' must be up to {texts_max} texts of 1 to {STOP_CHARACTERS_MAX} characters.", param=name
        )
    return texts
