"""Several requests that are one answer: none is settled alone, and none is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.consumer.answers import ProviderChunk, ProviderDelta, ProviderMessage, Whole, WholeChoice
from api.consumer.attempt import Delta, Started
from api.consumer.inference import Consumed, Event, Finished
from api.consumer.side_by_side import AT_ONCE_MAX, SideBySide
from domain.errors import ProviderFailed
from domain.protocol import Usage
from tests.support.examples import snapshot

HASH = "ab" * 32


class Scripted:
    """Stands in for an Inference: says its text whole or in two pieces, and remembers how it ended."""

    running = 0
    most_running = 0

    together: asyncio.Barrier | None = None

    def __init__(self, text: str, *, stream: bool, fail: Exception | None = None, cost: int | None = 100) -> None:
        self.request_id: UUID = uuid4()
        self.tokens_used = 0
        self.end = ""
        self._text = text
        self.stream = stream
        self._fail = fail
        self._cost = cost
        self._gone = asyncio.Event()

    def consumer_gone(self) -> None:
        self._gone.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        Scripted.running += 1
        Scripted.most_running = max(Scripted.most_running, Scripted.running)
        try:
            async for event in self._answer():
                yield event
            if self.together is not None:
                await self.together.wait()
            self.tokens_used, self.end = 5, "settled"
            yield Finished(Usage(3, 2, 1, 1), HASH, "c2ln", self._cost)
        except Consumed:
            self.end = "settled for what was delivered"
            raise
        finally:
            Scripted.running -= bool(self.stream)
            self.end = self.end or "released"

    async def _answer(self) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0)
        if self._gone.is_set():
            raise Consumed
        yield Started(snapshot(), f"job of {self._text}", {})
        if self._fail is not None:
            raise self._fail
        if not self.stream:
            Scripted.running -= 1
            yield Whole((WholeChoice(ProviderMessage(content=self._text), 0),))
            return
        for piece in (self._text[:1], self._text[1:]):
            await asyncio.sleep(0)
            if self._gone.is_set():
                raise Consumed
            yield Delta(ProviderChunk((ProviderDelta(0, ProviderMessage(content=piece)),)))


@pytest.fixture(autouse=True)
def _nothing_runs() -> None:
    Scripted.running = Scripted.most_running = 0


def side_by_side(*scripted: Scripted) -> SideBySide:
    several: Any = scripted
    together = None if scripted[0].stream else asyncio.Barrier(len(scripted))
    for one in scripted:
        one.together = together
    return SideBySide(several, choices_of_each=1, settle_together=together)


async def events_of(several: SideBySide) -> list[Event]:
    return [event async for event in several.events()]


async def test_whole_answers_become_one() -> None:
    ones = [Scripted(str(number), stream=False) for number in range(16)]
    several = side_by_side(*ones)
    started, whole, finished = await events_of(several)
    assert isinstance(started, Started)
    assert isinstance(whole, Whole)
    assert [(choice.index, choice.message.content) for choice in whole.in_order()] == [(n, str(n)) for n in range(16)]
    assert finished == Finished(Usage(48, 32, 16, 16), "", "", 1_600)
    assert (several.tokens_used, {one.end for one in ones}) == (80, {"settled"})
    assert Scripted.most_running <= AT_ONCE_MAX


async def test_streams_become_one() -> None:
    events = await events_of(side_by_side(*(Scripted(f"{number}!", stream=True) for number in range(6))))
    assert [type(event) for event in events].count(Started) == 1
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    said = dict.fromkeys(range(6), "")
    for event in events[1:-1]:
        assert isinstance(event, Delta)
        for choice in event.chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == {number: f"{number}!" for number in range(6)}


async def test_while_one_charge_is_not_known_the_sum_is_not_either() -> None:
    *_, finished = await events_of(side_by_side(Scripted("a", stream=False), Scripted("b", stream=False, cost=None)))
    assert isinstance(finished, Finished)
    assert finished.cost_micro_usd is None


@pytest.mark.parametrize("failure", [ProviderFailed(), ZeroDivisionError()])
async def test_when_one_whole_answer_fails_none_is_settled(failure: Exception) -> None:
    ones = [Scripted(str(number), stream=False, fail=failure if number == 2 else None) for number in range(4)]
    with pytest.raises(type(failure)):
        await events_of(side_by_side(*ones))
    assert [one.end for one in ones] == ["released"] * 4


async def test_when_one_stream_fails_the_others_end_as_if_their_consumer_had_left() -> None:
    failure = ProviderFailed()
    ones = [Scripted("ab", stream=True, fail=failure if number == 0 else None) for number in range(6)]
    with pytest.raises(ProviderFailed):
        await events_of(side_by_side(*ones))
    assert ones[0].end == "released"
    assert {one.end for one in ones[1:]} <= {"settled", "settled for what was delivered"}


async def test_a_consumer_that_leaves_leaves_all_of_them() -> None:
    ones = [Scripted("ab", stream=True) for _ in range(6)]
    several = side_by_side(*ones)
    several.consumer_gone()
    with pytest.raises(Consumed):
        await events_of(several)
    assert {one.end for one in ones} == {"settled for what was delivered"}
    assert several.request_ids == tuple(one.request_id for one in ones)
