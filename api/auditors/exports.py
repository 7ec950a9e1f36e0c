"""GET /v1/admin/finance/export: a stream that ends with its own totals and hash."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from api.auditors.desk import ANSWER_SECONDS_MAX, PREFIX, Desk, desk_of
from domain.errors import ServiceUnavailable
from projections.audit import export
from projections.audit.instants import Stretch, between, snapshot

router = APIRouter()

_MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}


@router.get(f"{PREFIX}/export")
async def get_export(request: Request) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, ("what", "format", "from", "to"))
    what, format_ = query.choice("what", tuple(export.KINDS)), query.choice("format", export.FORMATS)
    start, end = query.time("from"), query.time("to")
    if desk.exports.locked():
        raise ServiceUnavailable("Other exports are running; try again when they are done.")
    stretch = await desk.read(lambda connection: between(connection, start, end))
    return StreamingResponse(
        _stream(desk, stretch, what, format_),
        media_type=_MEDIA_TYPES[format_],
        headers={"Content-Disposition": f'attachment; filename="{what}-{stretch.upto.position}.{format_}"'},
    )


async def _stream(desk: Desk, stretch: Stretch, what: str, format_: str) -> AsyncGenerator[bytes, None]:
    async with desk.exports:
        pieces = _pieces(desk, stretch, what, format_)
        try:
            while (piece := await run_in_threadpool(next, pieces, None)) is not None:
                yield piece
        finally:
            pieces.close()


def _pieces(desk: Desk, stretch: Stretch, what: str, format_: str) -> Generator[bytes, None, None]:
    with desk.reading() as connection, snapshot(connection, timeout_seconds=ANSWER_SECONDS_MAX):
        # A reader who stopped reading may not keep a snapshot of the database open.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        yield from export.export(connection, stretch, what=what, format_=format_)
