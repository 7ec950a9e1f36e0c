from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from api import errors
from api.consumer import payments
from api.consumer.payments import _cursor, _limit, _position, rfc3339
from api.identity.doorkeeper import Doorkeeper
from api.ports import UsageRow
from domain.errors import InvalidRequest
from domain.keys import Caller
from domain.ledger import Balance

NEWEST = 2**62


class TestTimes:
    @pytest.mark.parametrize(
        ("moment", "text"),
        [
            (datetime(2026, 5, 2, 8, 15, 30, tzinfo=UTC), "2026-05-02T08:15:30.000000Z"),
            (datetime(2026, 5, 2, 8, 15, 30, 5, tzinfo=UTC), "2026-05-02T08:15:30.000005Z"),
            (datetime(2026, 5, 2, 10, 15, tzinfo=timezone(timedelta(hours=2))), "2026-05-02T08:15:00.000000Z"),
        ],
    )
    def test_a_time_is_rfc_3339_in_utc(self, moment: datetime, text: str) -> None:
        assert rfc3339(moment) == text
        assert datetime.fromisoformat(text) == moment


class TestLimits:
    @pytest.mark.parametrize(("text", "limit"), [("1", 1), ("100", 100), ("1000", 1_000), ("007", 7)])
    def test_a_limit_from_1_to_1000_is_kept(self, text: str, limit: int) -> None:
        assert _limit(text) == limit

    @pytest.mark.parametrize("text", ["", "0", "-1", "1001", "abc", "1.5", "1e2", "٣", "²", "9" * 5_000, " 5"])
    def test_anything_else_is_the_default(self, text: str) -> None:
        assert _limit(text) == 100

    @pytest.mark.parametrize("text", ["0000000001", "0000000000000000001", "000000001999", "000000500" + "0" * 4_000])
    def test_leading_zeros_do_not_lead_around_the_maximum(self, text: str) -> None:
        assert 1 <= _limit(text) <= 1_000

    @given(st.text("0123456789", max_size=30))
    def test_no_number_of_digits_leads_around_the_maximum(self, text: str) -> None:
        assert 1 <= _limit(text) <= 1_000


class TestCursors:
    @given(st.integers(0, NEWEST))
    def test_a_cursor_finds_its_position(self, position: int) -> None:
        assert _position(_cursor(position)) == position
        assert "=" not in _cursor(position)

    def test_no_cursor_begins_at_the_newest(self) -> None:
        assert _position("") == NEWEST

    @pytest.mark.parametrize("cursor", ["!", "abc", "é", _cursor(5) + "é", "AAAA", "LTE.", " "])
    def test_a_cursor_of_somebody_else_is_refused_by_name(self, cursor: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            _position(cursor)
        assert refused.value.param == "cursor"

    @pytest.mark.parametrize("number", [-1, -(2**70), 2**63, 2**70])
    def test_a_made_up_position_stays_inside_of_what_a_database_column_holds(self, number: int) -> None:
        cursor = base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")
        try:
            position = _position(cursor)
        except InvalidRequest:
            return
        assert -(2**63) <= position < 2**63

    @given(st.text(max_size=100))
    def test_any_other_text_is_read_or_refused(self, cursor: str) -> None:
        try:
            position = _position(cursor)
        except InvalidRequest:
            return
        assert position <= NEWEST


class ScriptedBooks:
    def __init__(self, rows: Sequence[UsageRow]) -> None:
        self.rows = rows
        self.asked: list[tuple[str, int, int]] = []

    async def balance(self, account_id: str) -> Balance:
        return Balance(3_120_450, 1_000_000) if account_id == "ada" else Balance(0, 0)

    async def usage(self, account_id: str, *, before_position: int, limit: int) -> Sequence[UsageRow]:
        self.asked.append((account_id, before_position, limit))
        return [row for row in self.rows if row.position < before_position][:limit]


class ScriptedCredentials:
    async def find_api_key(self, token: str) -> Caller | None:
        return Caller(token, f"key of {token}") if token in ("ada", "new") else None


def row(position: int) -> UsageRow:
    settled_at = datetime(2026, 5, 2, 8, 15, 30, tzinfo=UTC)
    return UsageRow(UUID(int=position), "acme/small-8bit", 900, 2_100, 0, "", 0, 478, settled_at, position)


@pytest.fixture
def books() -> ScriptedBooks:
    return ScriptedBooks([row(position) for position in (50, 40, 30, 20, 10)])


@pytest.fixture
def client(books: ScriptedBooks) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(payments.router)
    errors.install(app)
    app.state.coordinator = SimpleNamespace(books=books, credentials=Doorkeeper(ScriptedCredentials()))  # type: ignore[arg-type]
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://darkbloom", headers={"Authorization": "Bearer ada"}
    )


class TestBalance:
    async def test_both_numbers_come_as_integers_and_as_texts(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/payments/balance")
        assert answer.json() == {
            "balance_micro_usd": 3_120_450,
            "balance_usd": "3.120450",
            "withdrawable_micro_usd": 1_000_000,
            "withdrawable_usd": "1.000000",
        }

    async def test_an_account_without_money_reads_as_zeros(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/payments/balance", headers={"Authorization": "Bearer new"})
        assert answer.json()["balance_usd"] == "0.000000"

    @pytest.mark.parametrize("path", ["/v1/payments/balance", "/v1/payments/usage"])
    @pytest.mark.parametrize("authorization", ["", "Bearer nobody", "Basic ada", "Bearer eigeninference-pt-ada"])
    async def test_nobody_else_is_let_in(self, client: httpx.AsyncClient, path: str, authorization: str) -> None:
        answer = await client.get(path, headers={"Authorization": authorization})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


class TestUsage:
    async def test_an_entry_has_the_members_of_the_documentation(self, client: httpx.AsyncClient) -> None:
        answer = (await client.get("/v1/payments/usage", params={"limit": 1})).json()
        job = str(UUID(int=50))
        assert answer["usage"] == [
            {
                "request_id": job,
                "job_id": job,
                "model": "acme/small-8bit",
                "prompt_tokens": 900,
                "completion_tokens": 2_100,
                "cost_micro_usd": 478,
                "timestamp": "2026-05-02T08:15:30.000000Z",
            }
        ]

    async def test_pages_lead_to_every_entry_once(self, client: httpx.AsyncClient) -> None:
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            answer = (await client.get("/v1/payments/usage", params={"limit": 2, "cursor": cursor})).json()
            seen += [entry["job_id"] for entry in answer["usage"]]
            assert answer["has_more"] is (answer["next_cursor"] is not None)
            cursor = answer["next_cursor"]
        assert seen == [str(UUID(int=position)) for position in (50, 40, 30, 20, 10)]

    async def test_a_page_that_is_just_full_has_no_next(self, client: httpx.AsyncClient) -> None:
        answer = (await client.get("/v1/payments/usage", params={"limit": 5})).json()
        assert (len(answer["usage"]), answer["has_more"], answer["next_cursor"]) == (5, False, None)

    async def test_an_account_without_usage_has_an_empty_page(
        self, client: httpx.AsyncClient, books: ScriptedBooks
    ) -> None:
        books.rows = []
        answer = (await client.get("/v1/payments/usage")).json()
        assert answer == {"usage": [], "has_more": False, "next_cursor": None}

    async def test_the_books_are_asked_for_the_callers_account_and_one_row_more(
        self, client: httpx.AsyncClient, books: ScriptedBooks
    ) -> None:
        await client.get("/v1/payments/usage", params={"limit": "nonsense"})
        assert books.asked == [("ada", NEWEST, 101)]

    async def test_a_bad_cursor_is_answered_by_name(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/payments/usage", params={"cursor": "!!!"})
        error: dict[str, Any] = answer.json()["error"]
        assert (answer.status_code, error["param"], error["type"]) == (400, "cursor", "invalid_request_error")
