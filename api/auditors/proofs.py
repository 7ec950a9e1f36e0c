"""GET /v1/admin/finance/audit/head and /audit/verify: the log against its Merkle tree."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auditors.books import POSITION_MAX
from api.auditors.desk import PREFIX, Desk, answer, desk_of
from api.auditors.ports import Proofs
from domain.errors import InvalidRequest, NotFound, ServiceUnavailable
from projections.audit.instants import head_of

router = APIRouter()


@router.get(f"{PREFIX}/audit/head")
async def get_head(request: Request) -> Response:
    desk = desk_of(request)
    await desk.admit(request)
    head = await run_in_threadpool(_proofs(desk).head)
    if head is None:
        raise NotFound("No checkpoint has been signed yet.")
    return answer(head)


@router.get(f"{PREFIX}/audit/verify")
async def verify(request: Request) -> Response:
    """Positions ``from`` (default 1) to ``to`` (default the newest), both included."""
    desk = desk_of(request)
    query = await desk.admit(request, ("from", "to"))
    proofs = _proofs(desk)
    head = await desk.read(head_of)
    start = query.number("from", least=1, most=POSITION_MAX) or 1
    end = query.number("to", least=1, most=POSITION_MAX) or head.position
    if not start <= end <= head.position:
        raise InvalidRequest(f"The log has the positions 1 to {head.position} now.", param="to")
    return answer(await run_in_threadpool(proofs.verify, start, end))


def _proofs(desk: Desk) -> Proofs:
    if desk.proofs is None:
        raise ServiceUnavailable("This gateway keeps no Merkle tree over the log.")
    return desk.proofs
