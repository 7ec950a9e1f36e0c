from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.consumer import body
from api.consumer.body import NESTING_MAX, read_json_object
from domain.errors import InvalidRequest, PayloadTooLarge

SECRET = "the-secret-of-a-prompt"


def request_of(parts: Sequence[bytes | None], headers: dict[str, str] | None = None) -> Request:
    """A request whose body arrives in these parts; None is a consumer that hangs up."""
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        part = waiting.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    raw_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw_headers}, receive)


async def read(raw: bytes, bytes_max: int = 1_000_000) -> dict[str, Any]:
    return await read_json_object(request_of([raw]), bytes_max)


def nested(depth: int, brackets: str = "[]") -> bytes:
    """An object with so many levels in all."""
    inner = brackets[0] * (depth - 1) + brackets[1] * (depth - 1)
    if brackets == "{}":
        inner = '{"a":' * (depth - 1) + "1" + "}" * (depth - 1)
    return f'{{"a":{inner}}}'.encode()


class TestReading:
    async def test_an_object_is_read(self) -> None:
        assert await read(b' {"a": [1, 2.5, null, true, "\\u00e9"]} ') == {"a": [1, 2.5, None, True, "é"]}

    async def test_a_body_may_arrive_in_many_parts(self) -> None:
        raw = json.dumps({"text": "é" * 500}).encode()
        assert await read_json_object(request_of([raw[i : i + 7] for i in range(0, len(raw), 7)]), 10_000) == {
            "text": "é" * 500
        }

    @pytest.mark.parametrize("raw", [b"[]", b'"text"', b"5", b"null", b"true"])
    async def test_another_kind_of_value_is_refused(self, raw: bytes) -> None:
        with pytest.raises(InvalidRequest, match="must be a JSON object"):
            await read(raw)

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{",
            b"{]",
            b"{'a':1}",
            b'{"a":1}x',
            b'{"a":NaN}',
            b"\xff\xfe{}",
            b'{"a":"\xff"}',
            b'{"a":"\\ud83d"}',
            SECRET.encode(),
        ],
    )
    async def test_what_is_no_json_is_refused_without_being_quoted(self, raw: bytes) -> None:
        with pytest.raises(InvalidRequest, match="not valid JSON") as refused:
            await read(raw)
        assert SECRET not in refused.value.message
        assert refused.value.__cause__ is None

    @given(st.binary(max_size=300))
    def test_any_bytes_are_read_or_refused(self, raw: bytes) -> None:
        with contextlib.suppress(InvalidRequest):
            assert isinstance(asyncio.run(read(raw)), dict)


class TestSize:
    async def test_a_body_of_just_the_bound_is_read(self) -> None:
        raw = b'{"a":"' + b"x" * 92 + b'"}'
        assert len(raw) == 100
        assert await read(raw, 100)

    async def test_one_byte_more_is_refused(self) -> None:
        with pytest.raises(PayloadTooLarge) as refused:
            await read(b'{"a":"' + b"x" * 93 + b'"}', 100)
        assert (refused.value.http_status, refused.value.wire_code) == (413, "payload_too_large")

    async def test_a_declared_length_over_the_bound_is_refused_before_anything_is_read(self) -> None:
        async def never(_: Any = None) -> Any:
            raise AssertionError("nothing may be read")

        request = request_of([], {"Content-Length": "101"})
        request._receive = never
        with pytest.raises(PayloadTooLarge):
            await read_json_object(request, 100)

    async def test_a_length_that_lies_does_not_help(self) -> None:
        with pytest.raises(PayloadTooLarge):
            await read_json_object(request_of([b"x" * 101], {"Content-Length": "5"}), 100)

    async def test_reading_stops_as_soon_as_the_bound_is_passed(self) -> None:
        read_parts: list[int] = []

        async def parts() -> AsyncIterator[bytes]:
            for number in range(100):
                read_parts.append(number)
                yield b"x" * 50

        request = request_of([])
        request.stream = parts  # type: ignore[method-assign]
        with pytest.raises(PayloadTooLarge):
            await read_json_object(request, 100)
        assert read_parts == [0, 1, 2]

    @pytest.mark.parametrize("length", ["", "abc", "-1", "1e9", "²"])
    async def test_a_length_that_is_no_number_is_passed_over(self, length: str) -> None:
        request = request_of([b"{}"])
        request.scope["headers"] = [(b"content-length", length.encode("latin-1", "replace"))]
        assert await read_json_object(request, 100) == {}


class TestTime:
    async def test_a_body_that_does_not_arrive_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(body, "RECEIVE_SECONDS_MAX", 0.01)

        async def never() -> Any:
            await asyncio.Event().wait()

        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, never)
        with pytest.raises(InvalidRequest, match="did not arrive"):
            await read_json_object(request, 100)

    async def test_a_consumer_that_hangs_up_is_told_nothing_else(self) -> None:
        with pytest.raises(InvalidRequest, match="connection closed"):
            await read_json_object(request_of([b'{"a":', None]), 100)


class TestNesting:
    @pytest.mark.parametrize("brackets", ["[]", "{}"])
    async def test_as_deep_as_allowed_is_read(self, brackets: str) -> None:
        assert await read(nested(NESTING_MAX, brackets))

    @pytest.mark.parametrize("brackets", ["[]", "{}"])
    @pytest.mark.parametrize("depth", [NESTING_MAX + 1, 1_000, 100_000])
    async def test_deeper_is_refused_as_such(self, brackets: str, depth: int) -> None:
        with pytest.raises(InvalidRequest, match="nested more than"):
            await read(nested(depth, brackets))

    async def test_brackets_side_by_side_are_not_deep(self) -> None:
        many = b'{"a":[' + b",".join([b"[{}]"] * 5_000) + b"]}"
        assert len((await read(many))["a"]) == 5_000

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 1_000,
            "{" * 1_000,
            '\\"' + "[" * 1_000,
            "\\\\",
            '\\\\\\"' + "{" * 500,
            "]" * 1_000 + "[" * 1_000,
        ],
    )
    async def test_brackets_inside_of_strings_do_not_count(self, text: str) -> None:
        many = ",".join(["[]"] * 200)
        raw = f'{{"a":"{text}","b":[{many}]}}'.encode()
        assert await read(raw) == json.loads(raw)

    async def test_depth_hidden_behind_closing_brackets_in_a_string_is_found(self) -> None:
        levels = 200
        raw = b'{"a":' + b'["]]]]]",' * levels + b"1" + b"]" * levels + b"}"
        with pytest.raises(InvalidRequest, match="nested more than"):
            await read(raw)

    @pytest.mark.timeout(20)
    async def test_a_string_that_never_ends_is_read_only_once(self) -> None:
        # A scan that starts again at each of these quotes needs minutes, and meanwhile nobody else is served.
        raw = b'{"a":' + b"[" * NESTING_MAX + b'"' + b'\\"' * 250_000
        with pytest.raises(InvalidRequest):
            await read(raw)

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(st.sampled_from('[]{}"\\a'), max_size=10),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text(st.sampled_from('[]{}"\\a'), max_size=5), inner, max_size=4)
            ),
            max_leaves=200,
        )
    )
    def test_the_depth_is_that_of_the_parsed_value(self, value: Any) -> None:
        raw = json.dumps([[] for _ in range(NESTING_MAX)] + [value]).encode()
        assert body._nesting_of(raw) == max(2, _depth(value) + 1)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(inner) for inner in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(inner) for inner in value), default=0)
    return 0


class TestCompression:
    @pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "GZIP", "gzip, identity", "x"])
    async def test_a_compressed_body_is_refused_before_anything_is_read(self, encoding: str) -> None:
        bomb = gzip.compress(b" " * 1_000_000)
        with pytest.raises(InvalidRequest, match="Content-Encoding"):
            await read_json_object(request_of([bomb], {"Content-Encoding": encoding}), 10_000)

    @pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
    async def test_a_body_that_only_says_that_it_is_not_is_read(self, encoding: str) -> None:
        assert await read_json_object(request_of([b"{}"], {"Content-Encoding": encoding}), 100) == {}
