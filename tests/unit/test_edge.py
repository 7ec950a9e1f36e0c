from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message

from api import errors
from api.edge import BODY_BYTES_MAX, EXPOSED_HEADERS, Edge, new_request_id
from domain.errors import InsufficientFunds

CONSOLE = "https://console.darkbloom.dev"
SECRET = "the-secret-of-a-prompt"


def app_of(*, development: bool = False, origins: tuple[str, ...] = (CONSOLE,)) -> FastAPI:
    app = FastAPI()
    errors.install(app)

    @app.get("/fine")
    async def fine() -> Response:
        return PlainTextResponse("fine")

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        raise InsufficientFunds

    @app.get("/crash")
    async def crash() -> Response:
        raise RuntimeError(f"could not use {SECRET}")

    @app.get("/crash-mid-stream")
    async def crash_mid_stream() -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError(SECRET)

        return StreamingResponse(body())

    @app.get("/echo")
    async def echo(request: Request) -> Response:
        return PlainTextResponse("x", headers={"X-Provider-Chip": request.headers.get("x-chip", "")})

    app.add_middleware(Edge, development=development, origins=origins)
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://darkbloom")


@pytest.fixture
def client() -> httpx.AsyncClient:
    return client_of(app_of())


class TestRequestIds:
    @pytest.mark.parametrize("sent", ["a", "abc-DEF_0.9:x", "A" * 128, "7k2m0p3q9s1t"])
    async def test_an_id_of_the_callers_is_kept(self, client: httpx.AsyncClient, sent: str) -> None:
        answer = await client.get("/fine", headers={"X-Request-ID": sent})
        assert answer.headers["x-request-id"] == answer.headers["request-id"] == sent

    @pytest.mark.parametrize("sent", ["", "A" * 129, "a b", "a/b", "<script>", 'a"b', "a,b"])
    async def test_any_other_text_is_replaced(self, client: httpx.AsyncClient, sent: str) -> None:
        answer = await client.get("/fine", headers={"X-Request-ID": sent})
        assert answer.headers["x-request-id"] != sent
        assert len(answer.headers["x-request-id"]) == 12

    def test_a_made_id_has_12_characters_of_0_to_v_and_is_new_each_time(self) -> None:
        made = {new_request_id() for _ in range(500)}
        assert len(made) == 500
        assert {len(one) for one in made} == {12}
        assert set("".join(made)) <= set("0123456789abcdefghijklmnopqrstuv")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/nowhere"),
            ("POST", "/fine"),
            ("GET", "/crash"),
            ("OPTIONS", "/x"),
            ("POST", "/v1/chat/completions"),
        ],
    )
    async def test_every_answer_has_one(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        answer = await client.request(method, path)
        assert answer.headers["x-request-id"] == answer.headers["request-id"]
        assert len(answer.headers["x-request-id"]) == 12


class TestCors:
    async def test_a_configured_origin_is_echoed(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/fine", headers={"Origin": CONSOLE})
        assert answer.headers["access-control-allow-origin"] == CONSOLE
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-max-age"] == "600"
        assert answer.headers["vary"] == "Origin"
        assert {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} == set(
            answer.headers["access-control-allow-methods"].split(", ")
        )

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "null",
            "*",
            "",
            CONSOLE + ".evil.example",
            CONSOLE.upper(),
            "http://console.darkbloom.dev",
            CONSOLE + ":8443",
        ],
    )
    async def test_any_other_origin_gets_nothing(self, client: httpx.AsyncClient, origin: str) -> None:
        answer = await client.get("/fine", headers={"Origin": origin})
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["vary"] == "Origin"
        assert answer.status_code == 200

    async def test_a_caller_without_an_origin_needs_none(self, client: httpx.AsyncClient) -> None:
        assert "access-control-allow-origin" not in (await client.get("/fine")).headers

    async def test_without_configured_origins_nothing_varies(self) -> None:
        answer = await client_of(app_of(origins=())).get("/fine", headers={"Origin": CONSOLE})
        assert "vary" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers

    async def test_errors_can_be_read_by_the_console_as_well(self, client: httpx.AsyncClient) -> None:
        for path in ("/crash", "/nowhere"):
            answer = await client.get(path, headers={"Origin": CONSOLE})
            assert answer.headers["access-control-allow-origin"] == CONSOLE

    @pytest.mark.parametrize(
        "name",
        [
            "X-Request-ID",
            "X-Inference-Job-ID",
            "X-Provider-Trust-Level",
            "X-SE-Signature",
            "X-Response-Hash",
            "X-Eigen-Sealed",
            "X-Eigen-Sealed-Kid",
            "x-should-retry",
            "Retry-After",
        ],
    )
    async def test_a_browser_may_read_the_trust_headers(self, client: httpx.AsyncClient, name: str) -> None:
        answer = await client.get("/fine", headers={"Origin": CONSOLE})
        assert name in answer.headers["access-control-expose-headers"].split(", ")
        assert "*" not in EXPOSED_HEADERS

    async def test_the_headers_of_the_sdks_are_allowed_when_they_ask(self, client: httpx.AsyncClient) -> None:
        asked = "authorization, x-stainless-lang,X-Stainless-OS , x-evil, x-stainless-bad\tname, x-stainless-"
        answer = await client.options(
            "/v1/chat/completions", headers={"Origin": CONSOLE, "Access-Control-Request-Headers": asked}
        )
        allowed = [name.lower() for name in answer.headers["access-control-allow-headers"].split(", ")]
        assert {"authorization", "content-type", "x-api-key", "x-stainless-lang", "x-stainless-os"} <= set(allowed)
        assert "x-evil" not in allowed
        assert "x-stainless-" not in allowed
        assert not [name for name in allowed if "\t" in name]


class TestOptions:
    @pytest.mark.parametrize("path", ["/fine", "/v1/chat/completions", "/nowhere", "/"])
    async def test_any_path_answers_204_without_credentials_or_body(self, client: httpx.AsyncClient, path: str) -> None:
        answer = await client.options(path, headers={"Origin": CONSOLE})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == CONSOLE


class TestErrors:
    async def test_a_crash_is_a_500_that_says_nothing(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = await client.get("/crash")
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"], error["param"]) == (
            500,
            "internal_error",
            "internal_error",
            None,
        )
        assert SECRET not in answer.text
        assert "RuntimeError" not in answer.text
        assert SECRET not in caplog.text
        assert "RuntimeError" in caplog.text
        assert "crash" in caplog.text

    async def test_a_crash_in_a_stream_cuts_it(self, caplog: pytest.LogCaptureFixture) -> None:
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError("nothing more is received")

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/crash-mid-stream", "headers": [], "query_string": b""}
        await app_of()(scope, receive, send)
        # Its status is out already, so the answer just never ends, and the server closes the connection.
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert (sent[0]["status"], sent[1]["body"], sent[1]["more_body"]) == (200, b"first", True)
        assert SECRET not in caplog.text

    async def test_an_unknown_path_is_an_error_in_our_form(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/nowhere")
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (
            404,
            "invalid_request_error",
            "endpoint_not_found",
        )

    async def test_a_wrong_method_says_which_is_right(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"

    async def test_a_refusal_of_the_domain_keeps_its_status(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_quota")
        assert answer.headers["x-should-retry"] == "false"

    async def test_a_path_that_is_quoted_back_is_cut_and_encoded(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/" + "é\"'<x>" * 400)
        assert answer.status_code == 404
        assert len(json.loads(answer.content)["error"]["message"]) < 400


class TestSize:
    @pytest.mark.parametrize("path", ["/fine", "/nowhere", "/v1/messages"])
    async def test_no_endpoint_takes_more_than_the_ceiling(self, client: httpx.AsyncClient, path: str) -> None:
        answer = await client.post(path, headers={"Content-Length": str(BODY_BYTES_MAX + 1)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
        assert len(answer.headers["x-request-id"]) == 12

    @pytest.mark.parametrize("length", [str(BODY_BYTES_MAX), "²", "-1", "1e99"])
    async def test_up_to_it_the_endpoint_decides(self, client: httpx.AsyncClient, length: str) -> None:
        answer = await client.post("/nowhere", headers=[(b"content-length", length.encode("latin-1"))])
        assert answer.status_code == 404


class TestMode:
    async def test_development_says_so_in_every_answer(self) -> None:
        client = client_of(app_of(development=True))
        for path in ("/fine", "/crash", "/nowhere"):
            assert (await client.get(path)).headers["x-darkbloom-mode"] == "development"
        assert (await client.options("/fine")).headers["x-darkbloom-mode"] == "development"

    async def test_production_says_nothing(self, client: httpx.AsyncClient) -> None:
        assert "x-darkbloom-mode" not in (await client.get("/fine")).headers


class TestAccessLog:
    async def test_a_line_has_method_path_status_and_id(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "darkbloom.access"):
            await client.get("/fine", params={"q": SECRET}, headers={"X-Request-ID": "mine", "Authorization": SECRET})
        (line,) = [record.getMessage() for record in caplog.records if record.name == "darkbloom.access"]
        assert line.startswith("GET /fine 200 ")
        assert line.endswith("id=mine")
        assert SECRET not in line

    @pytest.mark.parametrize(("path", "status"), [("/crash", 500), ("/nowhere", 404)])
    async def test_failures_are_logged_with_the_status_that_went_out(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, path: str, status: int
    ) -> None:
        with caplog.at_level(logging.INFO, "darkbloom.access"):
            await client.get(path)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "darkbloom.access"]
        assert line.startswith(f"GET {path} {status} ")

    async def test_a_path_cannot_forge_a_line(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "darkbloom.access"):
            await client.get("/x%0AGET /forged 200 1.0 ms id=forged")
        (line,) = [record.getMessage() for record in caplog.records if record.name == "darkbloom.access"]
        assert "\n" not in line


@pytest.mark.parametrize("leaving", [True, False])
async def test_a_gateway_that_leaves_closes_each_connection_after_its_answer(leaving: bool) -> None:
    async def inner(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"keep-alive")]})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing() -> dict[str, str]:
        return {}

    edge = Edge(inner, development=True, origins=(), leaving=lambda: leaving)
    await edge({"type": "http", "method": "GET", "path": "/", "headers": []}, nothing, send)
    connections = [value for name, value in sent[0]["headers"] if name.lower() == b"connection"]
    assert connections == [b"close" if leaving else b"keep-alive"]


async def test_what_is_no_http_passes_through() -> None:
    seen: list[str] = []

    async def inner(scope: object, receive: object, send: object) -> None:
        seen.append(scope["type"])  # type: ignore[index]

    async def nothing(*_: object) -> dict[str, str]:
        return {}

    edge = Edge(inner, development=True, origins=())
    for kind in ("websocket", "lifespan"):
        await edge({"type": kind}, nothing, nothing)
    assert seen == ["websocket", "lifespan"]
