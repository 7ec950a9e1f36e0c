"""``TextEngine``: one loaded model, as the rest of the agent and a benchmark see it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil

from agent import metrics
from agent.engine import mlx
from agent.engine.decoder import Decoder, EngineState
from agent.engine.generation import Generation, deliver
from agent.engine.job import MAX_TOKENS_UNSET, ChatJob, Occupancy, Sampling, Throughput
from agent.engine.preparing import Preparer
from agent.engine.running import OpenAnswer, Ticket
from agent.engine.thread import MlxThread
from agent.errors import EngineBusy, EngineFailed, EngineUnavailable, JobError, JobRefused, ModelRejected
from agent.log import describe

_log = logging.getLogger(__name__)

QUEUED_PER_RUNNING = 2
"""Choices that may wait, for each one that may run; the next is refused (provider agent, section 8.1)."""

_PROMPT_CACHE_SHARE = 1 / 16
"""How much of the machine's memory the remembered conversations of one model may take."""


class TextEngine:
    """Answers chats with one model, many at a time.

    Prompts are rendered on a thread of their own, because a long one takes seconds in which the batch goes on decoding.
    """

    def __init__(
        self,
        path: Path,
        thread: MlxThread,
        *,
        context_length: int,
        max_concurrent: int = 4,
        memory_in_use: Callable[[], float] = metrics.memory_in_use,
    ) -> None:
        """``context_length`` is in tokens, prompt and answer together; ``max_concurrent`` counts choices. Nothing is
        loaded before ``start``."""
        self.path = path
        self.context_length = context_length
        self.max_concurrent = max_concurrent
        self._thread = thread
        self._decoder = Decoder(
            path.name,
            lambda: mlx.load(path),
            max_concurrent,
            self._choice_left,
            prompt_cache_bytes=int(psutil.virtual_memory().total * _PROMPT_CACHE_SHARE),
            memory_in_use=memory_in_use,
        )
        self._prompts = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self._preparer: Preparer | None = None
        self._open = 0
        self._open_lock = threading.Lock()

    async def start(self) -> Throughput:
        """Load the model, warm it up and measure it.

        Raises:
            ModelRejected: the folder cannot be loaded or served.
        """
        return await asyncio.wrap_future(self._thread.call(self._start))

    def submit(self, job: ChatJob) -> Generation:
        """Queue a job; to be called on the event loop that will iterate over the generation.

        Raises, at once:
            EngineBusy: ``max_concurrent`` choices run and twice as many wait, or would with this job's.
            EngineUnavailable: the model is not loaded.
        Raises, from the iteration:
            JobRefused: the job asks for something that this model cannot do, or its prompt leaves no room in the
                context.
            EngineFailed: the engine failed while the job was in it.
        """
        preparer = self._preparer
        if preparer is None or self._decoder.state != "ready":
            raise EngineUnavailable()
        with self._open_lock:
            # An idle engine takes any job, so that one with many choices finds its turn on a small machine too.
            if self._open and self._open + job.choices > self.max_concurrent * (1 + QUEUED_PER_RUNNING):
                raise EngineBusy()
            self._open += job.choices
        generation = Generation(self._withdraw)
        self._prompts.submit(self._prepare, preparer, job, generation)
        return generation

    @property
    def state(self) -> EngineState:
        return self._decoder.state

    @property
    def occupancy(self) -> Occupancy:
        """A snapshot of the last step. Choices whose prompt is still rendered count as waiting."""
        seen = self._decoder.occupancy
        return Occupancy(
            running=seen.running,
            waiting=max(0, self._open - seen.running),
            active_tokens=seen.active_tokens,
            max_tokens_potential=seen.max_tokens_potential,
        )

    def close(self) -> None:
        """End all jobs and free the model, after the step that is under way."""
        self._preparer = None
        self._prompts.shutdown(wait=False, cancel_futures=True)
        self._thread.call(self._stop)

    def _start(self) -> Throughput:
        loaded = self._decoder.start()
        try:
            throughput = mlx.measure(loaded, self.context_length)
        except Exception as error:
            raise ModelRejected(
                f"{self.path} loads, but a test generation failed ({describe(error)}). Download the model again, or "
                "choose another one."
            ) from error
        self._preparer = Preparer(loaded.prompter(), loaded.grammars, loaded.thought_tokens, loaded.vocabulary_size)
        self._thread.attach(self._decoder)
        return throughput

    def _stop(self) -> None:
        self._thread.detach(self._decoder)
        self._decoder.stop()

    def _prepare(self, preparer: Preparer, job: ChatJob, generation: Generation) -> None:
        tickets: list[Ticket] = []
        failure: JobError | None = None
        try:
            if not generation.cancelled:
                tickets = self._tickets(preparer, job, generation)
        except JobError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - nobody else would tell the consumer
            _log.error("%s: a job could not be prepared: %s", self.path.name, describe(error))
            failure = EngineFailed()
        for ticket in tickets:
            self._decoder.take(ticket)
        for _ in range(job.choices - len(tickets)):
            self._choice_left()
        if failure is not None:
            deliver([(generation, failure)])
        self._thread.wake()

    def _tickets(self, preparer: Preparer, job: ChatJob, generation: Generation) -> list[Ticket]:
        prepared = preparer.prepare(job)
        room = self.context_length - len(prepared.prompt)
        if room < 1:
            raise JobRefused(
                f"messages: the prompt has {len(prepared.prompt)} tokens, and the context holds {self.context_length} "
                "with the answer"
            )
        generation.prompt_tokens = len(prepared.prompt)
        answer = OpenAnswer(generation, job.choices)
        return [
            Ticket(
                answer=answer,
                choice=choice,
                sequence=mlx.Sequence(
                    prompt=prepared.prompt,
                    max_tokens=min(job.max_tokens or MAX_TOKENS_UNSET, room),
                    sampling=_sampling_of(choice, job.sampling),
                    constraint=prepared.constraints[choice] if prepared.constraints else None,
                    top_logprobs=job.top_logprobs,
                    grammars=prepared.grammars,
                    # The choices of one job begin alike, and the next turn goes on from one of them.
                    remember=job.cache_salt is not None and choice == 0,
                ),
                reading=prepared.reading,
                cache_salt=job.cache_salt,
            )
            for choice in range(job.choices)
        ]

    def _withdraw(self, generation: Generation) -> None:
        # The decoder looks at the generation's own flag before each step.
        self._thread.wake()

    def _choice_left(self) -> None:
        with self._open_lock:
            self._open -= 1


def _sampling_of(choice: int, sampling: Sampling) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)
