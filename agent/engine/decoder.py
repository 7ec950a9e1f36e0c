"""The MLX thread's half of an engine: which jobs run, what each step gives them, and what happens when it fails."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from agent.engine.generation import Generation, deliver
from agent.engine.job import Event, Occupancy
from agent.engine.mlx import Batch, LoadedModel, PromptState, Token
from agent.engine.prompt_cache import SWEEP_SECONDS, PromptCache
from agent.engine.restart import RestartPolicy
from agent.engine.running import RunningChoice, Ticket
from agent.errors import EngineFailed, EngineUnavailable
from agent.log import describe

_log = logging.getLogger(__name__)

EngineState = Literal["loading", "ready", "reloading", "crashed"]


class Decoder:
    """Drives one model's batch. ``take``, ``withdraw`` and the properties may be used from any thread.

    A failure that belongs to one job ends that job. A failure of the batch ends every job in it, and the model is
    loaded again as ``RestartPolicy`` allows.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        max_concurrent: int,
        left: Callable[[], None],
        *,
        prompt_cache_bytes: int,
        memory_in_use: Callable[[], float],
    ) -> None:
        """``left`` is called once for each ticket, when it has left the engine for whatever reason. ``memory_in_use``
        is the share of the machine's memory, from 0 to 1."""
        self._name = name
        self._load = load
        self._max_concurrent = max_concurrent
        self._left = left
        self._inbox: deque[Ticket] = deque()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, RunningChoice] = {}
        self._batch: Batch | None = None
        self._conversations = PromptCache[PromptState](prompt_cache_bytes)
        self._memory_in_use = memory_in_use
        self._sweep_at = 0.0
        self._restarts = RestartPolicy()
        self._reload_at: float | None = None
        self.state: EngineState = "loading"
        self.occupancy = Occupancy()

    def start(self) -> LoadedModel:
        """Load the model; on the MLX thread.

        Raises:
            ModelRejected: the folder cannot be loaded.
        """
        loaded = self._load()
        self._loaded = loaded
        self._batch = Batch(loaded, self._max_concurrent)
        self.state = "ready"
        return loaded

    def take(self, ticket: Ticket) -> None:
        """Hand over a job; the MLX thread must be woken after it."""
        self._inbox.append(ticket)

    def step(self) -> bool:
        try:
            return self._step()
        except Exception as error:  # noqa: BLE001 - whatever MLX raises, the thread goes on
            self._crash(error)
            return False

    def wake_at(self) -> float | None:
        return self._sweep_at if self._reload_at is None and len(self._conversations) else self._reload_at

    def stop(self) -> None:
        """End all jobs and let go of the model; on the MLX thread."""
        self._fail_all(EngineUnavailable)
        self._drop_batch()
        self.state = "crashed"
        self._reload_at = None

    def _step(self) -> bool:
        if self._reload_at is not None and time.monotonic() >= self._reload_at:
            self._reload()
        self._sweep()
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        if self._batch is None:
            self._fail_all(EngineUnavailable)
            return False
        self._drop_abandoned(self._batch)
        self._admit(self._batch)
        events: list[tuple[Generation, Event]] = []
        try:
            if self._running:
                self._decode(self._batch, events)
        finally:
            # Published first, so that whoever hears of a job's end already finds its place free; delivered also when
            # the step failed half way, because jobs that ended in it are in no list any more.
            self._publish()
            deliver(events)
        return bool(self._running or self._waiting)

    def _sweep(self) -> None:
        now = time.monotonic()
        if len(self._conversations) and now >= self._sweep_at:
            self._conversations.sweep(now, self._memory_in_use())
            self._sweep_at = now + SWEEP_SECONDS

    def _drop_abandoned(self, batch: Batch) -> None:
        for uid in [uid for uid, choice in self._running.items() if choice.ticket.answer.abandoned]:
            batch.remove(uid)
            self._leave(uid)
        if any(ticket.answer.abandoned for ticket in self._waiting):
            staying = [ticket for ticket in self._waiting if not ticket.answer.abandoned]
            for _ in range(len(self._waiting) - len(staying)):
                self._left()
            self._waiting = deque(staying)

    def _admit(self, batch: Batch) -> None:
        while self._waiting and len(self._running) < self._max_concurrent:
            ticket = self._waiting.popleft()
            try:
                choice = RunningChoice(ticket, self._loaded.detokenizer())
                uid = batch.insert(replace(ticket.sequence, remembered=self._remembered(ticket)))
            except Exception as error:  # noqa: BLE001 - one job's failure is its own
                _log.error("%s: a job could not start: %s", self._name, describe(error))
                self._left()
                deliver(self._failed(ticket))
            else:
                self._running[uid] = choice

    def _remembered(self, ticket: Ticket) -> PromptState | None:
        if ticket.cache_salt is None:
            return None
        state = self._conversations.find(ticket.cache_salt, ticket.sequence.prompt, time.monotonic())
        if ticket.choice == 0:
            ticket.answer.generation.cached_tokens = len(state.tokens) if state else 0
        return state

    def _decode(self, batch: Batch, events: list[tuple[Generation, Event]]) -> None:
        for token in batch.step():
            choice = self._running[token.uid]
            answer = choice.ticket.answer
            try:
                pieces, end = choice.advance(token)
            except Exception as error:  # noqa: BLE001 - one job's failure is its own
                _log.error("%s: a job failed: %s", self._name, describe(error))
                events += self._failed(choice.ticket)
                self._end(batch, token)
                continue
            events += [(answer.generation, piece) for piece in pieces]
            if end is not None:
                events.append((answer.generation, end))
                if finished := answer.close(choice):
                    events.append((answer.generation, finished))
                state = self._end(batch, token)
                if state is not None and choice.ticket.cache_salt is not None:
                    self._conversations.keep(choice.ticket.cache_salt, state, time.monotonic())

    def _failed(self, ticket: Ticket) -> list[tuple[Generation, Event]]:
        """The failure of a job, told once for all its choices; the others are dropped before the next step."""
        if ticket.answer.failed:
            return []
        ticket.answer.failed = True
        return [(ticket.answer.generation, EngineFailed())]

    def _end(self, batch: Batch, token: Token) -> PromptState | None:
        # The batch drops a sequence by itself after its end token or its last allowed one.
        state = token.state if token.end is not None else batch.finish(token.uid)
        self._leave(token.uid)
        return state

    def _leave(self, uid: int) -> None:
        del self._running[uid]
        self._left()

    def _publish(self) -> None:
        choices = self._running.values()
        self.occupancy = Occupancy(
            running=len(choices),
            waiting=len(self._waiting),
            active_tokens=sum(len(choice.ticket.sequence.prompt) + choice.completion_tokens for choice in choices),
            max_tokens_potential=sum(choice.ticket.sequence.max_tokens for choice in choices),
        )

    def _crash(self, error: Exception) -> None:
        delay = self._restarts.delay_after_failure(time.monotonic())
        plan = f"loading it again in {delay:.0f} s" if delay is not None else "it failed too often and stays down"
        _log.error("%s: the engine failed (%s); %s", self._name, describe(error), plan)
        self.state = "crashed"
        self._reload_at = time.monotonic() + delay if delay is not None else None
        self._drop_batch()
        self._fail_all(EngineFailed)

    def _reload(self) -> None:
        self._reload_at = None
        self.state = "reloading"
        self.start()
        _log.info("%s: loaded again", self._name)

    def _drop_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        del self._loaded
        self._conversations.clear()
        try:
            batch.close()
        except Exception as error:  # noqa: BLE001 - the batch is given up either way
            _log.error("%s: a failed engine did not close: %s", self._name, describe(error))

    def _fail_all(self, failure: type[EngineFailed] | type[EngineUnavailable]) -> None:
        tickets = [choice.ticket for choice in self._running.values()] + list(self._waiting) + list(self._inbox)
        self._running.clear()
        self._waiting.clear()
        self._inbox.clear()
        for _ in tickets:
            self._left()
        self._publish()
        generations = {ticket.answer.generation for ticket in tickets if not ticket.answer.failed}
        deliver([(generation, failure()) for generation in generations])
