from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from eventsourcing.domain import OriginatorIDError, OriginatorVersionError
from hypothesis import given
from hypothesis import strategies as st

from domain.pricing import quote_for
from domain.requests import InferenceRequest, JobDispatched, JobFailed, RequestAdmitted, RequestReleased, job_id_of
from tests.support.examples import REQUEST, record
from tests.support.memory_ledger import BEGINNING


def admitted() -> InferenceRequest:
    request = InferenceRequest(InferenceRequest.id_of(str(REQUEST)))
    record(
        request,
        RequestAdmitted,
        request_id=str(REQUEST),
        account_id="ada",
        key_id="key",
        gateway_id="gateway",
        model="model",
        prompt_estimate=1,
        prompt_bound=2,
        output_bound=3,
        units_bound=0,
        reserved=100,
        quote=quote_for("model"),
        self_route=False,
        expires_at=BEGINNING + timedelta(hours=1),
    )
    return request


def dispatched(request: InferenceRequest, job_id: str) -> None:
    record(
        request,
        JobDispatched,
        job_id=job_id,
        attempt=1,
        provider_id="session",
        machine_id="machine",
        provider_key="key",
        provider_account_id="",
        quote=quote_for("model"),
    )


class TestJobIds:
    def test_the_same_attempt_always_has_the_same_id(self) -> None:
        assert job_id_of(REQUEST, 1) == job_id_of(UUID(str(REQUEST)), 1)
        assert job_id_of(REQUEST, 1).version == 5

    @given(st.uuids(), st.uuids(), st.integers(1, 3), st.integers(1, 3))
    def test_no_two_attempts_share_an_id(self, one: UUID, other: UUID, first: int, second: int) -> None:
        assert (job_id_of(one, first) == job_id_of(other, second)) == ((one, first) == (other, second))


class TestInferenceRequest:
    def test_its_life_is_followed_event_by_event(self) -> None:
        request = admitted()
        assert request.admission is not None
        assert (request.jobs, request.failed, request.end) == ({}, set(), None)
        dispatched(request, "job")
        record(request, JobFailed, job_id="job", reason="timeout", status_code=504)
        released = record(request, RequestReleased, request_id=str(REQUEST), account_id="ada", reason="failed")
        assert (set(request.jobs), request.failed, request.end) == ({"job"}, {"job"}, released)
        assert (request.version, request.modified_on) == (4, BEGINNING)

    def test_a_copy_is_not_reached_by_later_events(self) -> None:
        request = admitted()
        twin = request.copy()
        dispatched(request, "job")
        record(request, JobFailed, job_id="job", reason="timeout", status_code=504)
        assert (twin.jobs, twin.failed, twin.version) == ({}, set(), 1)

    def test_an_event_of_another_request_is_refused(self) -> None:
        event = record(admitted(), RequestReleased, request_id=str(REQUEST), account_id="ada", reason="failed")
        with pytest.raises(OriginatorIDError):
            event.evolve(InferenceRequest(InferenceRequest.id_of("another")))

    def test_an_event_out_of_its_turn_is_refused_and_changes_nothing(self) -> None:
        event = record(admitted(), RequestReleased, request_id=str(REQUEST), account_id="ada", reason="failed")
        blank = InferenceRequest(InferenceRequest.id_of(str(REQUEST)))
        with pytest.raises(OriginatorVersionError):
            event.evolve(blank)
        assert (blank.version, blank.end) == (0, None)
