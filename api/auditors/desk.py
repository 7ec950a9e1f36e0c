"""The auditor's desk: who may sit at it, what is noted of every call, and where answers are read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from api.auditors.ports import Accesses, Reading, Replayer, ReplayRuns
from api.auditors.query import Query
from api.consumer.auth import authenticate
from api.ports import Credentials, Ledger
from domain.errors import Forbidden, InvalidRequest
from domain.keys import Caller
from projections.audit.instants import Connection, snapshot

T = TypeVar("T")

PREFIX = "/v1/admin/finance"
ANSWER_SECONDS_MAX = 60.0
EXPORTS_AT_ONCE = 2
_READS = ("auditor", "admin")


class Desk:
    def __init__(
        self,
        *,
        credentials: Credentials,
        accesses: Accesses,
        reading: Reading,
        ledger: Ledger,
        runs: ReplayRuns,
        replayer: Replayer,
    ) -> None:
        self.reading = reading
        self.ledger = ledger
        self.runs = runs
        self.replayer = replayer
        self.exports = asyncio.Semaphore(EXPORTS_AT_ONCE)
        self.background: set[asyncio.Task[None]] = set()
        self._credentials = credentials
        self._accesses = accesses

    async def admit(self, request: Request, parameters: Sequence[str] = (), *, change: bool = False) -> Query:
        """Let an auditor or an admin in, and note the call before it is answered.

        Only parameters that the endpoint has are noted, so a secret that was put into the address goes nowhere.

        Raises:
            AuthenticationFailed: no valid key. Forbidden: the key's role does not allow it. InvalidRequest: a parameter
            that the endpoint does not have, or one given twice.
        """
        caller = await authenticate(request.headers, self._credentials)
        _require_role(caller, change=change)
        query = Query(request.query_params, parameters, caller)
        if "\x00" in "".join((*map(str, request.path_params.values()), *request.query_params.values())):
            raise InvalidRequest("The address holds a zero byte.")
        endpoint = f"{request.method} {request.scope['route'].path}"
        await self._accesses.record(caller.key_id, endpoint, _noted(request.path_params, query))
        query.check()
        return query

    async def read(self, question: Callable[[Connection], T]) -> T:
        """Answer a question in one snapshot of the database, in a thread."""

        def answer() -> T:
            with self.reading() as connection, snapshot(connection, timeout_seconds=ANSWER_SECONDS_MAX):
                return question(connection)

        return await run_in_threadpool(answer)


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.audit
    return desk


def answer(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


def _require_role(caller: Caller, *, change: bool) -> None:
    if caller.is_admin:
        return
    if caller.key.role not in _READS:
        raise Forbidden("This key cannot read the books; make one with 'darkbloomd keys create --role auditor'.")
    if change and caller.key.role != "admin":
        raise Forbidden("An auditor key only reads; this needs an admin key.")


def _noted(path: Mapping[str, Any], query: Query) -> dict[str, str]:
    return {name: str(value)[:200] for name, value in path.items()} | query.known()
