"""/v1/admin/jobs/dead: what the scheduler gave up, for admins."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auditors.bodies import read_body
from api.auditors.desk import answer, desk_of
from domain.errors import InvalidRequest

PATH = "/v1/admin/jobs/dead"
IDS_MAX = 1_000

router = APIRouter(include_in_schema=False)


class DeadLetter(Protocol):
    @property
    def message_id(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def actor(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def attempt(self) -> int | None: ...
    @property
    def queued_at(self) -> float: ...


class DeadLetters(Protocol):
    """Blocking; called in threads. Each raises ServiceUnavailable when the scheduler's broker does not answer."""

    def newest(self, limit: int) -> tuple[Sequence[DeadLetter], int]:
        """The newest ones, and how many there are."""
        ...

    def replay(self, message_ids: Collection[str] | None) -> int: ...

    def drop(self, message_ids: Collection[str] | None) -> int: ...


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """Dead letters by their ids, or ``all`` of them."""

    ids: list[str] = []
    all: bool = False

    def message_ids(self) -> Collection[str] | None:
        """None for all. Raises InvalidRequest when it is not clear which ones are meant."""
        if self.all is bool(self.ids):
            raise InvalidRequest("Give either 'ids' or 'all': true.", param="ids")
        if len(self.ids) > IDS_MAX:
            raise InvalidRequest(f"'ids' has at most {IDS_MAX} entries.", param="ids")
        return None if self.all else frozenset(self.ids)


@router.get(PATH)
async def list_dead_letters(request: Request) -> Response:
    query = await desk_of(request).admit(request, ("limit",), change=True)
    found, total = await run_in_threadpool(_dead_letters(request).newest, query.limit())
    return answer({"dead_letters": [_shown(letter) for letter in found], "total": total})


@router.post(f"{PATH}/replay")
async def replay_dead_letters(request: Request) -> Response:
    await desk_of(request).admit(request, change=True)
    chosen = await read_body(request, Chosen)
    return answer({"replayed": await run_in_threadpool(_dead_letters(request).replay, chosen.message_ids())})


@router.post(f"{PATH}/drop")
async def drop_dead_letters(request: Request) -> Response:
    await desk_of(request).admit(request, change=True)
    chosen = await read_body(request, Chosen)
    return answer({"dropped": await run_in_threadpool(_dead_letters(request).drop, chosen.message_ids())})


def _dead_letters(request: Request) -> DeadLetters:
    dead_letters: DeadLetters = request.app.state.dead_letters
    return dead_letters


def _shown(letter: DeadLetter) -> dict[str, object]:
    return {
        "id": letter.message_id,
        "queue": letter.queue,
        "actor": letter.actor,
        "request_id": letter.request_id,
        "attempt": letter.attempt,
        "queued_at": datetime.fromtimestamp(letter.queued_at, UTC),
    }
