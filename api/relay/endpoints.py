"""Where other gateways reach the machines of this one."""

from __future__ import annotations

import logging

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.coordinator import Coordinator
from api.internal import read_internal
from api.relay.jobs import RelayedResponse
from domain import protocol
from domain.errors import InvalidRequest
from domain.protocol import PROVIDER_INBOUND_BYTES_MAX, InferenceRequest
from domain.relay import JOB_PATH, JOBS_PATH, VIOLATIONS_PATH, Violation

log = logging.getLogger(__name__)

VIOLATION_BYTES_MAX = 4096

router = APIRouter(include_in_schema=False)


@router.post(JOBS_PATH)
async def run_job(request: Request, session_id: str) -> Response:
    """410 when the machine is not, or no longer, connected here."""
    body = await read_internal(request, PROVIDER_INBOUND_BYTES_MAX)
    coordinator: Coordinator = request.app.state.coordinator
    try:
        asked = protocol.decode_from_coordinator(body)
    except protocol.MalformedMessage:
        raise InvalidRequest("The body is not a sealed request.") from None
    if not isinstance(asked, InferenceRequest):
        raise InvalidRequest("The body is not a sealed request.")
    machine = coordinator.registry.find(session_id)
    if machine is None or coordinator.suspended:
        return Response(status_code=410)
    try:
        job = await coordinator.relayed.start(session_id, machine, asked)
    except ConnectionError:
        return Response(status_code=410)
    return RelayedResponse(job, coordinator.relayed)


@router.delete(JOB_PATH)
async def cancel_job(request: Request, session_id: str, job_id: str) -> Response:
    await read_internal(request, 0)
    coordinator: Coordinator = request.app.state.coordinator
    job = coordinator.relayed.find(session_id, job_id)
    if job is None:
        return Response(status_code=410)
    try:
        await job.cancel()
    except ConnectionError:
        return Response(status_code=410)
    return Response(status_code=204)


@router.post(VIOLATIONS_PATH)
async def take_violation(request: Request, session_id: str) -> Response:
    body = await read_internal(request, VIOLATION_BYTES_MAX)
    coordinator: Coordinator = request.app.state.coordinator
    try:
        violation = msgspec.json.decode(body, type=Violation)
    except msgspec.DecodeError:
        raise InvalidRequest("The body is not a violation.") from None
    machine = coordinator.registry.find(session_id)
    if machine is None:
        return Response(status_code=410)
    await machine.violated(violation.what)
    return Response(status_code=204)
