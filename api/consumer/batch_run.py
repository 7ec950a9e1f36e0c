"""Runs one batch, line by line, through the same admission, scheduler and settlement as every request.

A line is only started while a machine that serves its model has nothing else to do and nobody waits for the model. What
a machine answered is kept before it is paid for, so whoever comes after a crash finds nothing charged, and tries the
line again, or a charge together with its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec

from api.consumer.answers import Whole
from api.consumer.attempt import Started
from api.consumer.batch_lines import READERS, LineRequest, answered, expired, read_line, refused
from api.consumer.inference import Finished
from api.consumer.rendering import AnyCall
from api.consumer.serving import admit, inference_of, model_for
from api.coordinator import Coordinator
from api.ports import BatchWork
from domain.batches import TRIES_MAX, BatchLost, Line, request_id_of
from domain.catalog import CatalogModel
from domain.dispatch import ReleaseJob
from domain.errors import (
    AttemptTimedOut,
    DarkbloomError,
    DecryptionFailed,
    InternalError,
    InvalidRequest,
    KidMismatch,
    LedgerUnavailable,
    ModelNotAvailable,
    ProviderFailed,
    ServiceUnavailable,
    UnknownRequest,
)
from domain.keys import Caller
from domain.protocol import Usage
from domain.requests import RequestSettled
from domain.routing import Snapshot

log = logging.getLogger(__name__)

LINES_AT_ONCE = 4
"""Of one batch, each on a machine of its own."""

PAUSE_SECONDS_MIN = 0.2
PAUSE_SECONDS_MAX = 5.0
"""How soon a batch looks again for an idle machine."""

_NOT_NOW = (ModelNotAvailable, ServiceUnavailable, LedgerUnavailable)
_AGAIN = (ProviderFailed, AttemptTimedOut)


class Draft(msgspec.Struct, frozen=True):
    """What a machine answered, before it is paid for."""

    machine: Snapshot
    job_id: str
    whole: Whole


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Draft).decode


class Turns:
    """One line at a time looks for an idle machine that serves a model; several would all find the same one."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, model: str) -> asyncio.Lock:
        return self._locks.setdefault(model, asyncio.Lock())


class _Later(Exception):
    """The line waits as before."""


class BatchRun:
    """One batch, from wherever it stands to its end."""

    def __init__(self, coordinator: Coordinator, work: BatchWork, turns: Turns) -> None:
        self._coordinator = coordinator
        self._work = work
        self._turns = turns
        self._failures: Counter[int] = Counter()

    async def run(self) -> None:
        """Work until the batch has ended or this gateway stops. Raises BatchLost when another gateway has it."""
        work, pause = self._work, PAUSE_SECONDS_MIN
        try:
            work.unlock()
        except (KidMismatch, DecryptionFailed):
            log.warning("batch %s cannot be read any more: the sealing key has changed", work.batch_id)
            await work.end("failed")
            return
        await self._recover()
        while not (self._coordinator.draining or self._coordinator.suspended):
            status, is_over = await work.state()
            lines = await work.lines("waiting", LINES_AT_ONCE)
            if not lines:
                if not await self._recover():
                    await work.end("completed")
                    return
            elif status == "cancelling":
                await work.end("cancelled")
                return
            elif is_over:
                await self._write_off()
                await work.end("expired")
                return
            elif (caller := await self._coordinator.credentials.find_key_by_id(work.key_id)) is None:
                log.info("batch %s ends, because its API key is not valid any more", work.batch_id)
                await work.end("failed")
                return
            elif any(await asyncio.gather(*(self._line(caller, line) for line in lines))):
                pause = PAUSE_SECONDS_MIN
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    # --- one line ------------------------------------------------------------------------------------------------

    async def _line(self, caller: Caller, line: Line) -> bool:
        """Bring a line further; False when it waits as before."""
        request = read_line(line.text, self._work.endpoint)
        request_id = request_id_of(self._work.batch_id, line.number, line.tries + 1)
        try:
            await self._answer(caller, line, request, request_id)
        except (BatchLost, _Later):
            return False
        except DarkbloomError as error:
            await self._refuse(line, request, request_id, error)
        except Exception as bug:  # noqa: BLE001  # what is wrong with one line may not keep the others from running
            log.error("line %d of batch %s crashed: %s", line.number, self._work.batch_id, type(bug).__name__)
            await self._refuse(line, request, request_id, InternalError())
        return True

    async def _refuse(self, line: Line, request: LineRequest, request_id: UUID, error: DarkbloomError) -> None:
        try:
            await self._work.finish(line, refused(request.custom_id, request_id, error), failed=True)
        except (BatchLost, DarkbloomError) as problem:
            log.warning("an error of batch %s is written later: %s", self._work.batch_id, type(problem).__name__)

    async def _answer(self, caller: Caller, line: Line, request: LineRequest, request_id: UUID) -> None:
        call = READERS[self._work.endpoint](request.body)
        if call.streamed is not None:
            raise InvalidRequest("A request of a batch cannot be streamed.", param="stream")
        if len(call.prompts) > 1:
            raise InvalidRequest("A request of a batch has one prompt; write a line for each.", param="prompt")
        try:
            model = await model_for(call, self._coordinator)
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(self._turns.of(model.id))
                if not await self._coordinator.fleet.is_idle(model.id):
                    raise _Later
                await self._work.begin(line)
                await self._try(caller, line, request, request_id, call, model, turn)
        except _NOT_NOW:
            raise _Later from None

    async def _try(
        self,
        caller: Caller,
        line: Line,
        request: LineRequest,
        request_id: UUID,
        call: AnyCall,
        model: CatalogModel,
        turn: AsyncExitStack,
    ) -> None:
        try:
            body = await self._serve(caller, line, request_id, call, model, turn)
        except _NOT_NOW:
            await self._resolve(line._replace(tries=line.tries + 1))
            raise
        except _AGAIN:
            self._failures[line.number] += 1
            if self._failures[line.number] >= TRIES_MAX:
                raise
            await self._resolve(line._replace(tries=line.tries + 1))
            return
        await self._work.finish(line, answered(request.custom_id, request_id, body), failed=False)

    async def _serve(
        self,
        caller: Caller,
        line: Line,
        request_id: UUID,
        call: AnyCall,
        model: CatalogModel,
        turn: AsyncExitStack,
    ) -> bytes:
        """The body of the answer, after it is kept and paid for. The turn ends when a machine has begun."""
        (prompt,) = call.prompts
        coordinator, bounds = self._coordinator, prompt.bounds(model)
        coordinator.require_open()
        await admit(coordinator, caller, request_id, model, bounds, background=True)
        inference = inference_of(coordinator, caller, request_id, prompt, model, bounds, {}, background=True)
        draft: Draft | None = None
        started: Started | None = None
        body = b""
        try:
            async with aclosing(inference.events()) as events:
                async for event in events:
                    match event:
                        case Started():
                            started = event
                            await turn.aclose()
                        case Whole() if started is not None:
                            draft = Draft(started.machine, started.job_id, event)
                            await self._work.keep_draft(line, _encode(draft))
                        case Finished() if draft is not None:
                            body = _rendered(call, draft, event)
        finally:
            coordinator.switchboard.close(request_id)
        if not body:
            raise InternalError
        return body

    # --- after a crash, and after its time -----------------------------------------------------------------------

    async def _recover(self) -> bool:
        """Find out what became of lines that somebody was running; whether there were any.

        A try without an end gets one here: whoever still works on it finds it ended, and cannot charge it.
        """
        found = False
        while lines := await self._work.lines("running", LINES_AT_ONCE):
            found = True
            for line in lines:
                await self._resolve(line)
        return found

    async def _resolve(self, line: Line) -> None:
        """Put a line back whose last try was not charged; one that was charged has its result, and is done."""
        work = self._work
        request_id = request_id_of(work.batch_id, line.number, line.tries)
        try:
            end = await self._coordinator.jobs.end_now(
                ReleaseJob(request_id=request_id, account_id=work.account_id, reason="failed")
            )
        except UnknownRequest:
            end = None
        request = read_line(line.text, work.endpoint)
        if not isinstance(end, RequestSettled):
            await work.put_back(line)
            return
        if line.draft is None:
            await work.finish(line, refused(request.custom_id, request_id, InternalError()), failed=True)
            return
        usage = Usage(end.prompt_tokens, end.completion_tokens, cached_tokens=end.cached_tokens)
        body = _rendered(READERS[work.endpoint](request.body), _decode(line.draft), Finished(usage, "", "", end.cost))
        await work.finish(line, answered(request.custom_id, request_id, body), failed=False)

    async def _write_off(self) -> None:
        while lines := await self._work.lines("waiting", LINES_AT_ONCE):
            for line in lines:
                request = read_line(line.text, self._work.endpoint)
                request_id = request_id_of(self._work.batch_id, line.number, line.tries + 1)
                await self._work.finish(line, expired(request.custom_id, request_id), failed=True)


def _rendered(call: AnyCall, draft: Draft, finished: Finished) -> bytes:
    return call.whole(Started(draft.machine, draft.job_id, {}), draft.whole, finished)
