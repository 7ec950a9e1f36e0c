"""The parameters of an auditor's question. What is not understood is refused, never ignored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from starlette.datastructures import QueryParams

from domain.errors import InvalidRequest
from domain.keys import Caller
from projections.audit.instants import parse_time

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
_NOTED_CHARACTERS_MAX = 200


class Query:
    def __init__(self, sent: QueryParams, names: Sequence[str], caller: Caller) -> None:
        self.caller = caller
        self._sent = sent
        self._names = names

    def known(self) -> dict[str, str]:
        """The parameters that the endpoint has, as far as a record keeps them."""
        return {name: self._sent[name][:_NOTED_CHARACTERS_MAX] for name in self._names if name in self._sent}

    def check(self) -> None:
        """Raises InvalidRequest for a parameter that the endpoint does not have, or that was given twice."""
        names = [name for name, _ in self._sent.multi_items()]
        for name in names:
            if name not in self._names:
                has = ", ".join(self._names) or "none"
                raise InvalidRequest(f"This endpoint does not know the parameter {name[:40]!r}; it has: {has}.")
            if names.count(name) > 1:
                raise InvalidRequest(f"'{name}' is given more than once.", param=name)

    def text(self, name: str, characters_max: int = 200) -> str | None:
        value = self._sent.get(name)
        if value is None or value == "":
            return None
        if len(value) > characters_max:
            raise InvalidRequest(f"'{name}' has at most {characters_max} characters.", param=name)
        return value

    def time(self, name: str) -> datetime | None:
        value = self._sent.get(name)
        return parse_time(value, name) if value else None

    def number(self, name: str, *, least: int = 0, most: int) -> int | None:
        """A whole number within bounds, or None when it is not given."""
        value = self._sent.get(name)
        if not value:
            return None
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= 19 else -1
        if not least <= number <= most:
            raise InvalidRequest(f"'{name}' is a whole number from {least} to {most}.", param=name)
        return number

    def limit(self) -> int:
        return self.number("limit", least=1, most=LIMIT_MAX) or LIMIT_DEFAULT

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of the choices; the first one when none is given."""
        value = self._sent.get(name) or choices[0]
        if value not in choices:
            raise InvalidRequest(f"'{name}' is one of {', '.join(choices)}.", param=name)
        return value


def id_of(text: str, name: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest(f"'{name}' is not a UUID.", param=name) from None
