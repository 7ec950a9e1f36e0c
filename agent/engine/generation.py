"""The consumer's half of a running job: an iterator of events on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.engine.job import ChoiceEnd, Event, Finished, Piece
from agent.errors import JobError

_COALESCED_PIECES_MAX = 64


class Generation:
    """Iterate over it for ``Piece`` after ``Piece``, a ``ChoiceEnd`` for each choice, and one ``Finished`` at the end.

    Pieces of one kind that gathered while nobody looked come as one. What gathers is bounded by the job's output limit.

    Raises, while iterating:
        JobError: the prompt was refused or the engine failed; nothing follows.
    """

    def __init__(self, withdraw: Callable[[Generation], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.cancelled = False
        self._withdraw = withdraw
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._taken: dict[int, Piece] = {}
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece | ChoiceEnd | Finished:
        if self._ended:
            raise StopAsyncIteration
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, Piece):
            piece = self._taken[event.choice] = self._with_followers(event)
            return piece
        if isinstance(event, ChoiceEnd):
            return event
        self._ended = True
        if isinstance(event, JobError):
            raise event
        return event

    def cancel(self) -> None:
        """End the job: the iterator gives a cancelled ``Finished`` next, the engine stops at its next token.

        Does nothing to a job that has ended. To be called on the loop that iterates.
        """
        if self._ended or self.cancelled:
            return
        self.cancelled = True
        self._events.clear()
        taken = self._taken.values()
        completion_tokens = sum(piece.completion_tokens for piece in taken)
        reasoning_tokens = sum(piece.reasoning_tokens for piece in taken)
        self._events.append(
            Finished(self.prompt_tokens, completion_tokens, self.cached_tokens, reasoning_tokens, cancelled=True)
        )
        self._arrived.set()
        self._withdraw(self)

    def push(self, event: Event) -> None:
        """Take an event from the engine; on the loop that iterates."""
        if not self.cancelled:
            self._events.append(event)
            self._arrived.set()

    def _with_followers(self, first: Piece) -> Piece:
        pieces = [first]
        while self._events and len(pieces) < _COALESCED_PIECES_MAX:
            following = self._events[0]
            if not isinstance(following, Piece) or not _continues(following, first):
                break
            pieces.append(following)
            self._events.popleft()
        if len(pieces) == 1:
            return first
        last = pieces[-1]
        return replace(
            first,
            text="".join(piece.text for piece in pieces),
            completion_tokens=last.completion_tokens,
            reasoning_tokens=last.reasoning_tokens,
            logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        )


def _continues(following: Piece, first: Piece) -> bool:
    same_place = (following.choice, following.channel, following.call) == (first.choice, first.channel, first.call)
    return same_place and following.head is None


def deliver(events: Iterable[tuple[Generation, Event]]) -> None:
    """Hand events to their generations from any thread, with one hop for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Event]]] = {}
    for generation, event in events:
        by_loop.setdefault(generation.loop, []).append((generation, event))
    for loop, addressed in by_loop.items():
        try:
            loop.call_soon_threadsafe(_push_all, addressed)
        except RuntimeError:
            # The loop was closed with its consumers: nobody is left to tell, so the work ends.
            for generation, _ in addressed:
                generation.cancelled = True


def _push_all(events: list[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.push(event)
