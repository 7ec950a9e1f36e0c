"""Running sums: what a page adds to a table of counters is folded first and written with one statement."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

K = TypeVar("K", bound=tuple[Any, ...])
Sums: TypeAlias = dict[K, list[int]]
"""A key of the table to what is added to each of its counters."""


def add_to(sums: Sums[K], key: K, *amounts: int) -> None:
    found = sums.get(key)
    if found is None:
        sums[key] = list(amounts)
        return
    for index, amount in enumerate(amounts):
        found[index] += amount


def columns_of(sums: Sums[K]) -> list[list[Any]]:
    """Keys and sums as the columns of one statement, in the order of the keys: two runners never lock crosswise."""
    return [list(column) for column in zip(*((*key, *sums[key]) for key in sorted(sums)), strict=True)]
