"""Whether a JSON value is a JSON schema that a machine may be asked to follow.

Only the form is checked here: every keyword that is known has a value of its kind, and every reference leads to a place
inside of the schema. Which schemas a machine can enforce, it says itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

SCHEMA_BYTES_MAX = 64 * 1024
"""A machine compiles a schema before it answers, so a schema is no larger than one that people write."""

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


class NoSchema(ValueError):
    """The text says where in the schema the fault is, in names of keywords only."""


def require_schema(schema: Any) -> None:
    """Raises NoSchema."""
    if not isinstance(schema, dict):
        raise NoSchema("it must be an object")
    if len(msgspec.json.encode(schema)) > SCHEMA_BYTES_MAX:
        raise NoSchema(f"it has more than {SCHEMA_BYTES_MAX} bytes")
    waiting: list[Any] = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            raise NoSchema("a subschema must be an object or a boolean")
        for keyword, is_valid in _KEYWORDS.items():
            if keyword in one and not is_valid(one[keyword]):
                raise NoSchema(f"'{keyword}' has a value that it cannot have")
        if "$ref" in one and not _leads_somewhere(one["$ref"], schema):
            raise NoSchema("'$ref' must lead to a place inside of the schema")
        waiting.extend(_subschemas(one))


def _subschemas(schema: dict[str, Any]) -> Iterator[Any]:
    for keyword in ("items", "additionalProperties", "not"):
        if keyword in schema:
            yield schema[keyword]
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        yield from schema.get(keyword, ())
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        yield from schema.get(keyword, {}).values()


def _leads_somewhere(ref: str, schema: dict[str, Any]) -> bool:
    """Whether a JSON pointer finds something in the schema."""
    if ref != "#" and not ref.startswith("#/"):
        return False
    found: Any = schema
    for step in ref.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return False
    return True


def _is_type(value: Any) -> bool:
    types = value if isinstance(value, list) else [value]
    return bool(types) and all(isinstance(one, str) and one in _TYPES for one in types)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_full_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_KEYWORDS: dict[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "enum": _is_full_list,
    "required": _is_list_of_texts,
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _is_object),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), _is_full_list),
    "prefixItems": _is_list,
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), _is_count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _is_number),
    **dict.fromkeys(("pattern", "format", "title", "description", "$ref"), _is_text),
}
