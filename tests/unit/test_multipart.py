from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.consumer.multipart import HEAD_BYTES_MAX, PARTS_MAX, read_form
from domain.errors import InvalidRequest, PayloadTooLarge
from tests.unit.test_body import request_of

SECRET = "the-secret-of-a-prompt"


def form_of(body: bytes, content_type: str = "multipart/form-data; boundary=b0") -> Request:
    return request_of([body], {"Content-Type": content_type})


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.jsonl"') -> bytes:
    return b"--b0\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


async def test_what_the_clients_library_sends_is_read() -> None:
    sent = httpx.Request(
        "POST", "http://x", files={"purpose": (None, b"batch"), "file": ('grüße "x".jsonl', b"\r\n--b\x00\xff\r\n")}
    )
    read = await read_form(form_of(sent.read(), sent.headers["content-type"]), 10_000, file_bytes_max=10_000)
    assert read == {
        "purpose": "batch",
        "file": b"\r\n--b\x00\xff\r\n",
        "file_name": 'grüße "x".jsonl',
    }


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.binary(max_size=300), min_size=1, max_size=5))
async def test_any_bytes_come_through(parts: dict[str, bytes]) -> None:
    sent = httpx.Request("POST", "http://x", files={name: ("f", content) for name, content in parts.items()})
    read = await read_form(form_of(sent.read(), sent.headers["content-type"]), 100_000, file_bytes_max=100_000)
    assert {name: read[name] for name in parts} == parts


async def test_of_a_field_that_comes_twice_the_last_value_counts_also_when_one_of_them_is_a_list() -> None:
    fields = (("a", "1"), ("a", "2"), ("b", "3"), ("b[]", "4"), ("b[]", "5"), ("c[]", "6"), ("c", "7"), ("", "8"))
    parts = b"".join(part(value.encode(), f'form-data; name="{name}"') for name, value in fields)
    read = await read_form(form_of(parts + b"--b0--"), 10_000, file_bytes_max=10_000)
    assert read == {"a": "2", "b": ["4", "5"], "c": "7", "": "8"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (part(b"x") + b"--b0--", "application/json"),
        (part(b"x") + b"--b0--", ""),
        (part(b"x") + b"--b0--", "multipart/form-data"),
        (part(b"x") + b"--b0--", "multipart/form-data; boundary=other"),
        (part(b"x") + b"--b0--", "multipart/mixed; boundary=b0"),
        (b"", "multipart/form-data; boundary=b0"),
        (part(b"x"), "multipart/form-data; boundary=b0"),
        (part(b"x") + b"--b0", "multipart/form-data; boundary=b0"),
        (part(b"x") * 2 + b"--b0--", "multipart/form-data; boundary=b0"),
        (b"--b0\r\n\r\nx\r\n--b0--", "multipart/form-data; boundary=b0"),
        (b"--b0\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b0--", "multipart/form-data; boundary=b0"),
        (part(b"x", "form-data; name=" + "y" * HEAD_BYTES_MAX) + b"--b0--", "multipart/form-data; boundary=b0"),
    ],
)
async def test_what_is_no_form_is_refused_without_being_quoted(body: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await read_form(form_of(body.replace(b"x", SECRET.encode()), content_type), 100_000, file_bytes_max=100_000)
    assert SECRET not in refused.value.message


async def test_a_form_has_bounds() -> None:
    many = b"".join(part(b"x", f'form-data; name="n{number}"') for number in range(PARTS_MAX + 1))
    with pytest.raises(InvalidRequest, match="more than"):
        await read_form(form_of(many + b"--b0--"), 100_000, file_bytes_max=100_000)
    with pytest.raises(PayloadTooLarge):
        await read_form(form_of(part(b"x" * 1_000) + b"--b0--"), 500, file_bytes_max=500)
