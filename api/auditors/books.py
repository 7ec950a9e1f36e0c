"""Trial balance, statements, entries and holds (money, section 12.7)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auditors.desk import PREFIX, answer, desk_of
from domain.errors import InvalidRequest
from domain.journal import CHART
from projections.audit import entries, holds, statement, trial_balance
from projections.audit.instants import Connection, at_head, at_position, at_time, between, head_of
from projections.audit.sources import sources_of

router = APIRouter()

POSITION_MAX = 2**62
AGE_SECONDS_MAX = 10 * 366 * 86_400


@router.get(f"{PREFIX}/trial-balance")
async def get_trial_balance(request: Request) -> Response:
    """At a time, at a position, or now; by what was recorded or by what was effective."""
    desk = desk_of(request)
    query = await desk.admit(request, ("at", "position", "basis"))
    at, position = query.time("at"), query.number("position", most=POSITION_MAX)
    basis = query.choice("basis", ("recorded", "effective"))
    if basis == "recorded" and at is not None and position is not None:
        raise InvalidRequest("Ask for a time or for a position, not for both.", param="position")

    def question(connection: Connection) -> trial_balance.TrialBalance:
        known = at_head(connection) if position is None else at_position(connection, position)
        if basis == "effective":
            moment = at or head_of(connection).now
            return trial_balance.effective(connection, moment, known, sources_of(connection))
        as_of = at_time(connection, at) if at is not None else known
        return trial_balance.recorded(connection, as_of, sources_of(connection))

    return answer(await desk.read(question))


@router.get(f"{PREFIX}/accounts/{{account_id:path}}/statement")
async def get_statement(request: Request, account_id: str) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, ("from", "to", "cursor", "limit"))
    start, end, limit = query.time("from"), query.time("to"), query.limit()
    cursor = query.text("cursor") or ""

    def question(connection: Connection) -> statement.Statement:
        stretch, sources = between(connection, start, end), sources_of(connection)
        return statement.statement(connection, account_id, stretch, sources, cursor=cursor, limit=limit)

    return answer(await desk.read(question))


@router.get(f"{PREFIX}/entries")
async def search_entries(request: Request) -> Response:
    desk = desk_of(request)
    names = ("kind", "account", "code", "reference", "from", "to", "min_micro_usd", "max_micro_usd", "cursor", "limit")
    query = await desk.admit(request, names)
    start, end, limit = query.time("from"), query.time("to"), query.limit()
    cursor, code = query.text("cursor") or "", query.text("code")
    if code is not None and code not in CHART:
        raise InvalidRequest("'code' is not an account of the chart.", param="code")
    least = query.number("min_micro_usd", most=entries.AMOUNT_MAX)
    most = query.number("max_micro_usd", most=entries.AMOUNT_MAX)
    filters = entries.Filters(
        kind=query.text("kind"),
        account=query.text("account"),
        code=code,
        reference=query.text("reference"),
        least_micro_usd=least or 0,
        most_micro_usd=entries.AMOUNT_MAX if most is None else most,
    )

    def question(connection: Connection) -> entries.EntryPage:
        stretch, sources = between(connection, start, end), sources_of(connection)
        return entries.search(connection, stretch, filters, sources, cursor=cursor, limit=limit)

    return answer(await desk.read(question))


@router.get(f"{PREFIX}/entries/{{entry_id:path}}")
async def get_entry(request: Request, entry_id: str) -> Response:
    """By id, or by key such as ``settle:<job id>``."""
    desk = desk_of(request)
    await desk.admit(request)
    return answer(await desk.read(lambda connection: entries.entry(connection, entry_id)))


@router.get(f"{PREFIX}/holds")
async def get_holds(request: Request) -> Response:
    desk = desk_of(request)
    query = await desk.admit(request, ("older_than_seconds", "limit"))
    age, limit = query.number("older_than_seconds", most=AGE_SECONDS_MAX) or 0, query.limit()

    def question(connection: Connection) -> holds.OpenHolds:
        return holds.open_holds(connection, sources_of(connection), older_than_seconds=age, limit=limit)

    return answer(await desk.read(question))
