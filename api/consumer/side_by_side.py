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

    def __init__(self, inferences: Sequence[Inference], *, choices_of_each: int) -> None:
        self._inferences = inferences
        self._choices_of_each = choices_of_each
        self._events: asyncio.Queue[Event | _Ended] = asyncio.Queue(EVENTS_MAX)
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._answered = asyncio.Barrier(len(inferences))

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
        started = False
        wholes: list[WholeChoice] = []
        finished: list[Finished] = []
        failure: Exception | None = None
        open_ones = len(self._inferences)
        while open_ones:
            match await self._events.get():
                case _Ended(error=error):
                    open_ones -= 1
                    if error is not None and failure is None:
                        failure = error
                        await self._answered.abort()
                        self.consumer_gone()
                case Whole(choices=choices):
                    wholes += choices
                case Finished() as one:
                    finished.append(one)
                case Started() as first if not started and failure is None:
                    started = True
                    yield first
                case Delta() as delta if failure is None:
                    yield delta
        if failure is not None:
            raise failure
        if wholes:
            yield Whole(tuple(wholes))
        yield _sum_of(finished)

    async def _run(self, number: int) -> None:
        """Put one request's events into the queue, its choices renumbered and its end last."""
        error: Exception | None = None
        try:
            async with aclosing(self._inferences[number].events()) as events:
                async with self._turns:
                    answered = await self._relay(events, number)
                if answered:
                    await self._answered.wait()
                    await self._relay(events, number)
        except asyncio.BrokenBarrierError:
            pass  # another one failed, and this one is released without a charge
        except Exception as raised:  # noqa: BLE001 - whatever it is, the consumer's one answer fails with it
            error = raised
        await self._events.put(_Ended(error))

    async def _relay(self, events: AsyncGenerator[Event, None], number: int) -> bool:
        """Up to a whole answer or to the end, and whether it was the former."""
        async for event in events:
            await self._events.put(self._renumbered(event, number))
            if isinstance(event, Whole):
                return True
        return False

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
