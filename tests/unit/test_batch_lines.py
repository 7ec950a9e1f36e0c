from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer import batch_lines
from api.consumer.batch_lines import answered, expired, lines_of, read_line, refused
from domain.batches import ENDPOINTS, request_id_of
from domain.errors import InsufficientFunds, InvalidRequest

SECRET = "the-secret-of-a-prompt"
CHAT = ENDPOINTS[0]
BATCH = UUID("7d1c2b1e-0000-4000-8000-000000000001")


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    request = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": "m"}}
    return json.dumps(request | changes).encode()


class TestReading:
    def test_a_file_of_requests_is_read_line_by_line_and_blank_lines_do_not_count(self) -> None:
        lines, errors = lines_of(b"\n" + line("a") + b"\r\n\n \n" + line("b"), CHAT, 1_000)
        assert [read_line(one, CHAT).custom_id for one in lines] == ["a", "b"]
        assert errors == []

    @pytest.mark.parametrize(
        ("wrong", "param"),
        [
            (SECRET.encode(), None),
            (b"[1]", None),
            (line(custom_id=None), "custom_id"),
            (line(custom_id=""), "custom_id"),
            (line(custom_id="x" * 257), "custom_id"),
            (line(custom_id="first"), "custom_id"),
            (line(method="GET"), "method"),
            (line(url="/v1/messages"), "url"),
            (line(body=SECRET), "body"),
            (line(body={"text": "x" * 1_000}), None),
        ],
    )
    def test_a_wrong_line_is_named_and_not_quoted(self, wrong: bytes, param: str | None) -> None:
        _, errors = lines_of(line("first") + b"\n" + wrong, CHAT, 1_000)
        assert [(error.line, error.param) for error in errors] == [(2, param)]
        assert SECRET not in errors[0].message

    def test_an_empty_file_and_one_with_too_many_lines_are_refused_as_a_whole(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert [error.code for error in lines_of(b"\n \n", CHAT, 100)[1]] == ["empty_file"]
        monkeypatch.setattr(batch_lines, "LINES_MAX", 2)
        assert [error.code for error in lines_of(line() * 1 + b"\nx\nx", CHAT, 100)[1]] == ["too_many_requests"]

    def test_not_more_errors_are_shown_than_anybody_reads(self) -> None:
        assert len(lines_of(b"x\n" * 1_000, CHAT, 100)[1]) == batch_lines.ERRORS_SHOWN_MAX

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, content: bytes) -> None:
        lines, errors = lines_of(content, CHAT, 100)
        assert errors or lines


class TestResults:
    def test_each_result_is_one_line_in_the_shape_of_the_original(self) -> None:
        request_id = request_id_of(BATCH, 1, 1)
        results = [
            answered("a\n", request_id, b'{"id":1}'),
            refused("b", request_id, InsufficientFunds()),
            expired("c", request_id),
        ]
        assert all(b"\n" not in result for result in results)
        good, bad, late = [json.loads(result) for result in results]
        assert good["custom_id"] == "a\n"
        assert good["response"] == {"status_code": 200, "request_id": str(request_id), "body": {"id": 1}}
        assert (bad["response"]["status_code"], bad["error"]) == (402, None)
        assert bad["response"]["body"]["error"]["code"] == "insufficient_quota"
        assert (late["response"], late["error"]["code"]) == (None, "batch_expired")

    def test_each_try_of_each_line_has_an_id_of_its_own_that_never_changes(self) -> None:
        ids = {request_id_of(BATCH, number, attempt) for number in range(1, 40) for attempt in range(1, 40)}
        assert len(ids) == 39 * 39
        assert request_id_of(BATCH, 7, 2) == request_id_of(BATCH, 7, 2)

    def test_a_line_that_is_no_request_any_more_is_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            read_line(b"{}", CHAT)
