from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.json_schema import SCHEMA_BYTES_MAX, NoSchema, require_schema

SECRET = "the-secret-of-a-schema"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": True}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"enum": [1, None, {"a": []}]}}},
        {"properties": {"$ref": {"type": "string"}, "type": {"type": "integer"}}},
        {"$ref": "#/definitions/a~1b~0", "definitions": {"a/b~": {"$ref": "#"}}},
        {"anyOf": [{"const": 1}, {"$ref": "#/anyOf/0"}], "additionalProperties": False},
        {"type": "string", "pattern": "^[a-z]+$", "minLength": 0, "maxLength": 5.0, "format": "date", "x-mine": 5},
        {"type": "number", "minimum": -1.5, "multipleOf": 2},
        {"prefixItems": [], "not": {"type": "null"}, "title": "T", "description": "D"},
    ],
)
def test_a_schema_is_one(schema: Any) -> None:
    require_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        "object",
        True,
        {"type": "thing"},
        {"type": []},
        {"type": {}},
        {"type": ["string", 5]},
        {"properties": []},
        {"properties": {"a": 5}},
        {"properties": {"a": {"items": {"type": "thing"}}}},
        {"items": [{"type": "string"}]},
        {"required": "a"},
        {"required": [5]},
        {"enum": []},
        {"anyOf": []},
        {"allOf": {}},
        {"oneOf": [5]},
        {"not": None},
        {"minItems": -1},
        {"maxItems": 1.5},
        {"minLength": True},
        {"minimum": "1"},
        {"pattern": 5},
        {"$ref": 5},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/anyOf/1", "anyOf": [{}]},
        {"$ref": "#/type/0", "type": "string"},
        {"title": "x" * SCHEMA_BYTES_MAX},
    ],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(NoSchema):
        require_schema(schema)


@pytest.mark.parametrize("schema", [{"type": SECRET}, {"$ref": SECRET}, {SECRET: 1, "enum": []}])
def test_a_refusal_repeats_nothing_of_it(schema: Any) -> None:
    with pytest.raises(NoSchema) as refused:
        require_schema(schema)
    assert SECRET not in str(refused.value)


keywords = st.sampled_from(
    ["type", "properties", "items", "anyOf", "enum", "required", "$ref", "$defs", "minItems", "#"]
)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | keywords,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=4),
    )
)
def test_any_json_value_is_either_a_schema_or_none(anything: Any) -> None:
    with contextlib.suppress(NoSchema):
        require_schema(anything)
