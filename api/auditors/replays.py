"""POST /v1/admin/finance/replay: rebuild projections from nothing and compare them with what is live."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auditors.bodies import read_body
from api.auditors.desk import PREFIX, Desk, answer, desk_of
from api.auditors.query import id_of
from domain.errors import Conflict, InvalidRequest, NotFound, ServiceUnavailable
from projections.audit.instants import at_head, at_position

log = logging.getLogger(__name__)

router = APIRouter()

ALIVE_SECONDS = 30.0
RENEW_SECONDS = 10.0


class ReplayBody(msgspec.Struct, forbid_unknown_fields=True):
    """Without names every projection is replayed; without a position each is replayed to where it stands now."""

    projections: list[str] = []
    to_position: int | None = None


@router.post(f"{PREFIX}/replay")
async def start_replay(request: Request) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request)
    replayer = desk.replayer
    body = await read_body(request, ReplayBody)
    names = list(dict.fromkeys(body.projections)) or list(replayer.names)
    unknown = sorted(set(names) - set(replayer.names))
    if unknown:
        raise InvalidRequest(f"'projections' may name {', '.join(replayer.names)}.", param="projections")
    to_position = body.to_position
    known = await desk.read(at_head if to_position is None else lambda c: at_position(c, to_position))
    run_id = uuid4()
    if not await desk.runs.begin(run_id, query.caller.key_id, names, known.position, ALIVE_SECONDS):
        raise Conflict("A replay is running; wait for its end.")
    task = asyncio.create_task(_run(desk, run_id, names, to_position))
    desk.background.add(task)
    task.add_done_callback(desk.background.discard)
    return answer({"run_id": run_id}, 202)


@router.get(f"{PREFIX}/replay/{{run_id}}")
async def get_replay(request: Request, run_id: str) -> Response:
    desk = desk_of(request)
    await desk.admit(request)
    run = await desk.runs.find(id_of(run_id, "run_id"))
    if run is None:
        raise NotFound("There is no such replay.")
    outcome = run.outcome or {}
    seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at else None
    return answer(
        {
            "status": run.status,
            "to_position": run.to_position,
            "events": outcome.get("events"),
            "seconds": None if seconds is None else round(seconds, 3),
            "projections": outcome.get("projections", [{"name": name} for name in run.projections]),
        }
    )


async def _run(desk: Desk, run_id: UUID, names: Sequence[str], to_position: int | None) -> None:
    keeping = asyncio.create_task(_keep(desk, run_id))
    try:
        compared = await asyncio.to_thread(desk.replayer.replay, names, to_position)
    except Exception as error:  # noqa: BLE001  # whatever went wrong, the run must not look as if it went on
        log.error("a replay failed: %s", type(error).__name__)
        await desk.runs.end(run_id, "failed", None)
    else:
        events = max((one.position for one in compared), default=0)
        outcome = {"events": events, "projections": msgspec.to_builtins(compared)}
        await desk.runs.end(run_id, "finished", outcome)
    finally:
        keeping.cancel()


async def _keep(desk: Desk, run_id: UUID) -> None:
    """Say that the run lives, as long as it does."""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        with contextlib.suppress(ServiceUnavailable):
            await desk.runs.keep(run_id, ALIVE_SECONDS)
