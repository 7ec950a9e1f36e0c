"""Lists as PostgreSQL arrays in their binary form, packed at once instead of element by element.

The ledger sends a batch as a handful of columns, thousands of values long. psycopg's own dumper takes several times
longer for these than PostgreSQL takes to store them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.pq import Format
from psycopg.types.array import ListBinaryDumper

_header = struct.Struct("!iiiii").pack
_length = struct.Struct("!i").pack
_int8 = struct.Struct("!iq").pack
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UUID_LENGTH = _length(16)


def _int8s(values: Sequence[int]) -> bytes:
    return b"".join([_int8(8, value) for value in values])


def _uuids(values: Sequence[UUID]) -> bytes:
    return b"".join([_UUID_LENGTH + value.int.to_bytes(16, "big") for value in values])


def _byteas(values: Sequence[bytes]) -> bytes:
    return b"".join([part for value in values for part in (_length(len(value)), value)])


def _texts(values: Sequence[str]) -> bytes:
    return _byteas([value.encode() for value in values])


def _timestamps(values: Sequence[datetime]) -> bytes:
    # One batch has one time for most of its values.
    packed: dict[datetime, bytes] = {}
    for value in set(values):
        packed[value] = _int8(8, (value - _POSTGRES_EPOCH) // _MICROSECOND)
    return b"".join([packed[value] for value in values])


class _Packing(NamedTuple):
    array_oid: int
    element_oid: int
    pack: Callable[[Sequence[Any]], bytes]


_PACKINGS: dict[type, _Packing] = {
    int: _Packing(1016, 20, _int8s),
    UUID: _Packing(2951, 2950, _uuids),
    str: _Packing(1009, 25, _texts),
    bytes: _Packing(1001, 17, _byteas),
    datetime: _Packing(1185, 1184, _timestamps),
}


class _PackedList(ListBinaryDumper):
    """Lists of int, UUID, str, bytes or datetime, without None; any other list goes psycopg's own way."""

    format = Format.BINARY

    def get_key(self, obj: list[Any], format: Any) -> Any:  # noqa: A002  # the library's parameter
        if obj and type(obj[0]) in _PACKINGS:
            return (self.cls, type(obj[0]))
        return super().get_key(obj, format)

    def upgrade(self, obj: list[Any], format: Any) -> Any:  # noqa: A002  # the same
        packing = _PACKINGS.get(type(obj[0])) if obj else None
        if packing is None:
            return super().upgrade(obj, format)
        return _PackedColumn(packing)


class _PackedColumn:
    """The dumper of one type of list."""

    format = Format.BINARY

    def __init__(self, packing: _Packing) -> None:
        self.oid = packing.array_oid
        self._packing = packing

    def dump(self, obj: list[Any]) -> bytes:
        return _header(1, 0, self._packing.element_oid, len(obj), 1) + self._packing.pack(obj)


def pack_lists(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Let a connection send lists in this way."""
    connection.adapters.register_dumper(list, _PackedList)
