"""The MLX thread's half of an engine: which jobs run, what each step gives them, and what happens when it fails."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.engine.generation import Generation, deliver
from agent.engine.job import Event, Finished, FinishReason, Occupancy, Piece, Sampling
from agent.engine.mlx import Batch, Detokenizer, LoadedModel, Token
from agent.engine.restart import RestartPolicy
from agent.engine.stops import StopFilter
from agent.errors import EngineFailed, EngineUnavailable
from agent.log import describe

_log = logging.getLogger(__name__)

EngineState = Literal["loading", "ready", "reloading", "crashed"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A job whose prompt is rendered. ``max_tokens`` fits the context and is at least 1."""

    generation: Generation
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


class _Running:
    """One job in the batch: its text so far as the detokenizer and the stop filter hold it."""

    def __init__(self, ticket: Ticket, detokenizer: Detokenizer) -> None:
        self.ticket = ticket
        self.completion_tokens = 0
        self._detokenizer = detokenizer
        self._stops = StopFilter(ticket.stop)

    def advance(self, token: Token) -> tuple[str, FinishReason | None]:
        """Take one token; returns the text that it sets free and why the answer ends, if it does."""
        if token.end != "stop":
            self.completion_tokens += 1
            self._detokenizer.add_token(token.id)
        if token.end is not None:
            self._detokenizer.finalize()
        text, stopped = self._stops.feed(self._detokenizer.last_segment)
        if stopped:
            return text, "stop"
        if token.end is not None:
            return text + self._stops.flush(), token.end
        return text, None


class Decoder:
    """Drives one model's batch. ``take``, ``withdraw`` and the properties may be used from any thread.

    A failure that belongs to one job ends that job. A failure of the batch ends every job in it, and the model is
    loaded again as ``RestartPolicy`` allows.
    """

    def __init__(
        self, name: str, load: Callable[[], LoadedModel], max_concurrent: int, left: Callable[[], None]
    ) -> None:
        """``left`` is called once for each ticket, when the job has left the engine for whatever reason."""
        self._name = name
        self._load = load
        self._max_concurrent = max_concurrent
        self._left = left
        self._inbox: deque[Ticket] = deque()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, _Running] = {}
        self._batch: Batch | None = None
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
        return self._reload_at

    def stop(self) -> None:
        """End all jobs and let go of the model; on the MLX thread."""
        self._fail_all(EngineUnavailable)
        self._drop_batch()
        self.state = "crashed"
        self._reload_at = None

    def _step(self) -> bool:
        if self._reload_at is not None and time.monotonic() >= self._reload_at:
            self._reload()
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        if self._batch is None:
            self._fail_all(EngineUnavailable)
            return False
        self._drop_cancelled(self._batch)
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

    def _drop_cancelled(self, batch: Batch) -> None:
        for uid in [uid for uid, job in self._running.items() if job.ticket.generation.cancelled]:
            batch.remove(uid)
            self._leave(uid)
        if any(ticket.generation.cancelled for ticket in self._waiting):
            staying = [ticket for ticket in self._waiting if not ticket.generation.cancelled]
            for _ in range(len(self._waiting) - len(staying)):
                self._left()
            self._waiting = deque(staying)

    def _admit(self, batch: Batch) -> None:
        while self._waiting and len(self._running) < self._max_concurrent:
            ticket = self._waiting.popleft()
            try:
                job = _Running(ticket, self._loaded.detokenizer())
                self._running[batch.insert(ticket.prompt, ticket.max_tokens, ticket.sampling)] = job
            except Exception as error:  # noqa: BLE001 - one job's failure is its own
                _log.error("%s: a job could not start: %s", self._name, describe(error))
                self._left()
                deliver([(ticket.generation, EngineFailed())])

    def _decode(self, batch: Batch, events: list[tuple[Generation, Event]]) -> None:
        for token in batch.step():
            job = self._running[token.uid]
            try:
                text, end = job.advance(token)
            except Exception as error:  # noqa: BLE001 - one job's failure is its own
                _log.error("%s: a job failed: %s", self._name, describe(error))
                events.append((job.ticket.generation, EngineFailed()))
                self._end(batch, token)
                continue
            if text:
                events.append((job.ticket.generation, Piece(text, job.completion_tokens)))
            if end is not None:
                finished = Finished(end, len(job.ticket.prompt), job.completion_tokens)
                events.append((job.ticket.generation, finished))
                self._end(batch, token)

    def _end(self, batch: Batch, token: Token) -> None:
        # The batch drops a sequence by itself after its end token or its last allowed one.
        if token.end is None:
            batch.remove(token.uid)
        self._leave(token.uid)

    def _leave(self, uid: int) -> None:
        del self._running[uid]
        self._left()

    def _publish(self) -> None:
        jobs = self._running.values()
        self.occupancy = Occupancy(
            running=len(jobs),
            waiting=len(self._waiting),
            active_tokens=sum(len(job.ticket.prompt) + job.completion_tokens for job in jobs),
            max_tokens_potential=sum(job.ticket.max_tokens for job in jobs),
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
        try:
            batch.close()
        except Exception as error:  # noqa: BLE001 - the batch is given up either way
            _log.error("%s: a failed engine did not close: %s", self._name, describe(error))

    def _fail_all(self, failure: type[EngineFailed] | type[EngineUnavailable]) -> None:
        tickets = [job.ticket for job in self._running.values()] + list(self._waiting) + list(self._inbox)
        self._running.clear()
        self._waiting.clear()
        self._inbox.clear()
        for _ in tickets:
            self._left()
        self._publish()
        deliver([(ticket.generation, failure()) for ticket in tickets])
