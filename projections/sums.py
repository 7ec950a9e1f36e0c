"""Sums: what a page adds to a table of counters is folded first and written with one statement."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TypeAlias, TypeVar

K = TypeVar("K", bound=tuple[Any, ...])
Sums: TypeAlias = defaultdict[K, list[tuple[int, ...]]]
"""A key of the table to what is added to its counters, a tuple for each event. Column by column they are added up in
a fraction of the time that adding each at once takes."""


def columns_of(sums: Sums[K]) -> list[list[Any]]:
    """Keys and sums as the columns of one statement, in the order of the keys: two runners never lock crosswise."""
    rows = ((*key, *map(sum, zip(*sums[key], strict=True))) for key in sorted(sums))
    return [list(column) for column in zip(*rows, strict=True)]
