"""GET /v1/admin/finance/audit/head and /audit/verify: the log against its Merkle tree."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auditors.books import POSITION_MAX
from api.auditors.desk import PREFIX, answer, desk_of
from domain.errors import InvalidRequest, NotFound
from projections.audit import tree
from projections.audit.instants import Connection, head_of

router = APIRouter()


@router.get(f"{PREFIX}/audit/head")
async def get_head(request: Request) -> Response:
    desk = desk_of(request)
    await desk.admit(request)
    head = await desk.read(tree.signed_head)
    if head is None:
        raise NotFound("No checkpoint has been signed yet.")
    return answer(head)


@router.get(f"{PREFIX}/audit/verify")
async def verify(request: Request) -> Response:
    """Positions ``from`` (default 1) to ``to`` (default the newest), both included."""
    desk = desk_of(request)
    query = await desk.admit(request, ("from", "to"))
    start = query.number("from", least=1, most=POSITION_MAX) or 1
    end = query.number("to", least=1, most=POSITION_MAX)

    def question(connection: Connection) -> tree.Verification:
        newest = head_of(connection).position
        upto = end or newest
        if not start <= upto <= newest:
            raise InvalidRequest(f"The log has the positions 1 to {newest} now.", param="to")
        return tree.verify(connection, start, upto)

    return answer(await desk.read(question))
