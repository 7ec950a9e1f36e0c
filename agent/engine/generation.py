"""The consumer's half of a running job: an iterator of events on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from agent.engine.job import Event, Finished, Piece
from agent.errors import JobError

_COALESCED_PIECES_MAX = 64


class Generation:
    """Iterate over it for ``Piece`` after ``Piece`` and one ``Finished`` at the end.

    Pieces that gathered while nobody looked come as one. What gathers is bounded by the job's output limit.

    Raises, while iterating:
        JobError: the prompt was refused or the engine failed; nothing follows.
    """

    def __init__(self, withdraw: Callable[[Generation], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.prompt_tokens = 0
        self.cancelled = False
        self._withdraw = withdraw
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._taken_tokens = 0
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece | Finished:
        if self._ended:
            raise StopAsyncIteration
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, Piece):
            event = self._with_followers(event)
            self._taken_tokens = event.completion_tokens
            return event
        self._ended = True
        if isinstance(event, JobError):
            raise event
        return event

    def cancel(self) -> None:
        """End the job: the iterator gives ``Finished("cancelled")`` next, the engine stops at its next token.

        Does nothing to a job that has ended. To be called on the loop that iterates.
        """
        if self._ended or self.cancelled:
            return
        self.cancelled = True
        self._events.clear()
        self._events.append(Finished("cancelled", self.prompt_tokens, self._taken_tokens))
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
            if not isinstance(following, Piece):
                break
            pieces.append(following)
            self._events.popleft()
        if len(pieces) == 1:
            return first
        return Piece("".join(piece.text for piece in pieces), pieces[-1].completion_tokens)


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
