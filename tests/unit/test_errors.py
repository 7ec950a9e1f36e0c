from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from api.errors import REQUEST_ID, anthropic_envelope, envelope, error_response, headers_of, speaks_anthropic
from domain import errors
from domain.errors import (
    AttemptTimedOut,
    AuthenticationFailed,
    Conflict,
    DarkbloomError,
    EndpointNotFound,
    Forbidden,
    InsufficientFunds,
    InternalError,
    InvalidRequest,
    InvariantViolated,
    LedgerBusy,
    LedgerUnavailable,
    MethodNotAllowed,
    ModelNotAvailable,
    ModelNotFound,
    PayloadTooLarge,
    ProviderFailed,
    ServiceUnavailable,
)


def everything(root: type[DarkbloomError] = DarkbloomError) -> Iterator[type[DarkbloomError]]:
    yield root
    for child in root.__subclasses__():
        yield from everything(child)


class TestTheContract:
    @pytest.mark.parametrize(
        ("error", "status", "kind", "code"),
        [
            (InvalidRequest, 400, "invalid_request_error", "invalid_request_error"),
            (PayloadTooLarge, 413, "invalid_request_error", "payload_too_large"),
            (AuthenticationFailed, 401, "authentication_error", "authentication_error"),
            (InsufficientFunds, 402, "insufficient_funds", "insufficient_quota"),
            (Forbidden, 403, "forbidden", "forbidden"),
            (ModelNotFound, 404, "model_not_found", "model_not_found"),
            (EndpointNotFound, 404, "invalid_request_error", "endpoint_not_found"),
            (MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
            (Conflict, 409, "conflict", "conflict"),
            (InternalError, 500, "internal_error", "internal_error"),
            (InvariantViolated, 500, "internal_error", "internal_error"),
            (ProviderFailed, 502, "provider_error", "provider_error"),
            (ModelNotAvailable, 503, "model_not_available", "model_not_available"),
            (LedgerUnavailable, 503, "service_unavailable", "service_unavailable"),
            (LedgerBusy, 503, "service_unavailable", "service_unavailable"),
            (ServiceUnavailable, 503, "service_unavailable", "service_unavailable"),
            (AttemptTimedOut, 504, "timeout", "timeout"),
        ],
    )
    def test_status_type_and_code(self, error: type[DarkbloomError], status: int, kind: str, code: str) -> None:
        raised = error()
        assert (raised.http_status, raised.type, raised.wire_code) == (status, kind, code)

    @pytest.mark.parametrize("error", list(everything()), ids=lambda error: error.__name__)
    def test_every_error_has_a_message_of_its_own_in_one_sentence_or_two(self, error: type[DarkbloomError]) -> None:
        message = error().message
        assert message == str(error())
        assert message.endswith(".")
        assert error.__doc__ is not None
        assert error.__doc__ != (error.__base__.__doc__ if error.__base__ else None)

    def test_the_tree_in_the_modules_docstring_is_the_tree(self) -> None:
        assert errors.__doc__ is not None
        drawn = {word for line in errors.__doc__.splitlines() for word in line.split() if word.isidentifier()}
        assert {error.__name__ for error in everything()} <= drawn

    def test_a_providers_status_is_passed_on(self) -> None:
        assert ProviderFailed("x", http_status=503).http_status == 503
        assert ProviderFailed().http_status == 502


class TestAnswers:
    def test_the_envelope_has_four_members_always(self) -> None:
        assert envelope(InvalidRequest("no", param="model")) == {
            "error": {
                "message": "no",
                "type": "invalid_request_error",
                "code": "invalid_request_error",
                "param": "model",
            }
        }
        assert envelope(Conflict("no"))["error"]["param"] is None

    def test_an_answer_is_json_with_the_errors_status(self) -> None:
        answer = error_response(InsufficientFunds(), {"path": "/v1/chat/completions"}, {"X-More": "1"})
        assert (answer.status_code, answer.headers["content-type"], answer.headers["x-more"]) == (
            402,
            "application/json",
            "1",
        )
        assert json.loads(bytes(answer.body))["error"]["code"] == "insufficient_quota"

    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/unknown"])
    def test_anthropics_paths_answer_in_anthropics_envelope(self, path: str) -> None:
        answer = error_response(ModelNotFound("no", param="model"), {"path": path, REQUEST_ID: "abc"})
        assert json.loads(bytes(answer.body)) == {
            "type": "error",
            "error": {"type": "not_found_error", "message": "no", "code": "model_not_found", "param": "model"},
            "request_id": "abc",
        }
        assert not speaks_anthropic("/v1/messages_of_others")

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (402, "billing_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (405, "invalid_request_error"),
            (409, "invalid_request_error"),
            (413, "request_too_large"),
            (422, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "api_error"),
            (502, "api_error"),
            (503, "overloaded_error"),
            (504, "timeout_error"),
        ],
    )
    def test_each_status_has_its_name_in_anthropics_dialect(self, status: int, kind: str) -> None:
        assert anthropic_envelope(ProviderFailed("x", http_status=status))["error"]["type"] == kind

    @pytest.mark.parametrize(
        ("error", "headers"),
        [
            (InvalidRequest(), {}),
            (AuthenticationFailed(), {"WWW-Authenticate": "Bearer"}),
            (InsufficientFunds(), {"x-should-retry": "false"}),
            (AttemptTimedOut(), {"x-should-retry": "false"}),
            (ModelNotAvailable(), {"Retry-After": "10"}),
            (LedgerBusy(), {"Retry-After": "1"}),
            (ServiceUnavailable(), {"Retry-After": "3"}),
        ],
    )
    def test_the_headers_say_whether_to_try_again(self, error: DarkbloomError, headers: dict[str, str]) -> None:
        assert headers_of(error) == headers
