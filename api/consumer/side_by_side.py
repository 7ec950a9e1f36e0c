"""Several admitted requests that are one answer to their consumer: one for each prompt of a list.

Each has a hold, a machine and a settlement of its own. A whole answer is all or nothing: no request is settled before
all of them are answered. A stream that fails is charged for what it delivered of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple
from uuid import UUID

from msgspec.structs import replace

from api.consumer.answers import ProviderChunk, Whole, WholeChoice
from api.consumer.attempt import Delta, Started
from api.consumer.inference import Event, Finished, Inference
from domain.protocol import Usage

AT_ONCE_MAX = 4
"""Requests of one answer that run at the same time, so that one consumer does not fill a model's queue."""

EVENTS_MAX = 64
"""Events that wait for the consumer; the machines' own inboxes hold the others."""


class _Ended(NamedTuple):
    """One of the requests has ended; ``error`` says how, when it failed."""

    error: Exception | None


class SideBySide:
    """Offers what an Inference offers. The choices of request ``k`` come behind those of the requests before it."""

    def __init__(
        self, inferences: Sequence[Inference], *, choices_of_each: int, settle_together: asyncio.Barrier | None
    ) -> None:
        """``settle_together`` is what the inferences have, for whole answers."""
        self._inferences = inferences
        self._choices_of_each = choices_of_each
        self._events: asyncio.Queue[Event | _Ended] = asyncio.Queue(EVENTS_MAX)
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._settle_together = settle_together
        self._has_started = False

    @property
    def request_ids(self) -> tuple[UUID, ...]:
        return tuple(one.request_id for one in self._inferences)

    @property
    def tokens_used(self) -> int:
        return sum(one.tokens_used for one in self._inferences)

    def consumer_gone(self) -> None:
        for one in self._inferences:
            one.consumer_gone()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Raises as ``Inference.events`` does, with the first failure."""
        running = [asyncio.create_task(self._run(number)) for number in range(len(self._inferences))]
        try:
            async for event in self._merged():
                yield event
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _merged(self) -> AsyncGenerator[Event, None]:
        wholes: list[WholeChoice] = []
        finished: list[Finished] = []
        failure: Exception | None = None
        open_ones = len(self._inferences)
        while open_ones:
            event = await self._events.get()
            if isinstance(event, _Ended):
                open_ones -= 1
                if event.error is not None and failure is None:
                    failure = event.error
                    await self._fail()
            elif isinstance(event, Whole):
                wholes += event.choices
            elif isinstance(event, Finished):
                finished.append(event)
            elif failure is None:
                yield event
        if failure is not None:
            raise failure
        if wholes:
            yield Whole(tuple(wholes))
        yield _sum_of(finished)

    async def _fail(self) -> None:
        """One has failed, so the others end: those that are answered without a charge, the others as if the consumer
        had left."""
        if self._settle_together is not None:
            await self._settle_together.abort()
        self.consumer_gone()

    async def _run(self, number: int) -> None:
        """Put one request's events into the queue, its choices renumbered and its end last."""
        error: Exception | None = None
        try:
            async with aclosing(self._inferences[number].events()) as events:
                async with self._turns:
                    await self._relay(events, number)
                await self._relay(events, number)
        except asyncio.BrokenBarrierError:
            pass  # another one failed, and this one is released without a charge
        except Exception as raised:  # noqa: BLE001 - whatever it is, the consumer's one answer fails with it
            error = raised
        await self._events.put(_Ended(error))

    async def _relay(self, events: AsyncGenerator[Event, None], number: int) -> None:
        """Up to a whole answer, which only has to be settled, or to the end."""
        async for event in events:
            if not isinstance(event, Started) or self._is_first():
                await self._events.put(self._renumbered(event, number))
            if isinstance(event, Whole):
                return

    def _is_first(self) -> bool:
        """Whether no other one has started; the answer starts once."""
        first, self._has_started = not self._has_started, True
        return first

    def _renumbered(self, event: Event, number: int) -> Event:
        first = number * self._choices_of_each
        match event:
            case Delta(chunk):
                return Delta(ProviderChunk(tuple(replace(one, index=first + one.index) for one in chunk.choices)))
            case Whole(choices):
                return Whole(tuple(replace(one, index=first + one.index) for one in choices))
        return event


def _sum_of(finished: list[Finished]) -> Finished:
    """What all of it came to. The proofs of several machines cannot be one."""
    usages = [one.usage for one in finished]
    costs = [one.cost_micro_usd for one in finished if one.cost_micro_usd is not None]
    usage = Usage(
        prompt_tokens=sum(one.prompt_tokens for one in usages),
        completion_tokens=sum(one.completion_tokens for one in usages),
        cached_tokens=sum(one.cached_tokens for one in usages),
        reasoning_tokens=sum(one.reasoning_tokens for one in usages),
    )
    return Finished(usage, "", "", sum(costs) if len(costs) == len(finished) else None)
