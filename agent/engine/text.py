"""``TextEngine``: one loaded model, as the rest of the agent and a benchmark see it."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.engine import mlx
from agent.engine.decoder import Decoder, EngineState, Ticket
from agent.engine.generation import Generation, deliver
from agent.engine.job import MAX_TOKENS_UNSET, ChatJob, Occupancy, Throughput
from agent.engine.mlx import Prompter
from agent.engine.thread import MlxThread
from agent.errors import EngineBusy, EngineFailed, EngineUnavailable, JobError, JobRefused, ModelRejected
from agent.log import describe

_log = logging.getLogger(__name__)

QUEUED_PER_RUNNING = 2
"""Jobs that may wait, for each one that may run; the next is refused (provider agent, section 8.1)."""


class TextEngine:
    """Answers chats with one model, many at a time.

    Prompts are rendered on a thread of their own, because a long one takes seconds in which the batch goes on decoding.
    """

    def __init__(self, path: Path, thread: MlxThread, *, context_length: int, max_concurrent: int = 4) -> None:
        """``context_length`` is in tokens, prompt and answer together. Nothing is loaded before ``start``."""
        self.path = path
        self.context_length = context_length
        self.max_concurrent = max_concurrent
        self._thread = thread
        self._decoder = Decoder(path.name, lambda: mlx.load(path), max_concurrent, self._job_left)
        self._prompts = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self._prompter: Prompter | None = None
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
            EngineBusy: ``max_concurrent`` jobs run and twice as many wait.
            EngineUnavailable: the model is not loaded.
        Raises, from the iteration:
            JobRefused: the template refuses the messages, or the prompt leaves no room in the context.
            EngineFailed: the engine failed while the job was in it.
        """
        prompter = self._prompter
        if prompter is None or self._decoder.state != "ready":
            raise EngineUnavailable()
        with self._open_lock:
            if self._open >= self.max_concurrent * (1 + QUEUED_PER_RUNNING):
                raise EngineBusy()
            self._open += 1
        generation = Generation(self._withdraw)
        self._prompts.submit(self._render, prompter, job, generation)
        return generation

    @property
    def state(self) -> EngineState:
        return self._decoder.state

    @property
    def occupancy(self) -> Occupancy:
        """A snapshot of the last step. Jobs whose prompt is still rendered count as waiting."""
        seen = self._decoder.occupancy
        return Occupancy(
            running=seen.running,
            waiting=max(0, self._open - seen.running),
            active_tokens=seen.active_tokens,
            max_tokens_potential=seen.max_tokens_potential,
        )

    def close(self) -> None:
        """End all jobs and free the model, after the step that is under way."""
        self._prompter = None
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
        self._prompter = loaded.prompter()
        self._thread.attach(self._decoder)
        return throughput

    def _stop(self) -> None:
        self._thread.detach(self._decoder)
        self._decoder.stop()

    def _render(self, prompter: Prompter, job: ChatJob, generation: Generation) -> None:
        try:
            ticket = self._ticket(prompter, job, generation)
        except Exception as error:  # noqa: BLE001 - nobody else would tell the consumer
            if not isinstance(error, JobError):
                _log.error("%s: a prompt could not be rendered: %s", self.path.name, describe(error))
            self._job_left()
            deliver([(generation, error if isinstance(error, JobError) else EngineFailed())])
            return
        self._decoder.take(ticket)
        self._thread.wake()

    def _ticket(self, prompter: Prompter, job: ChatJob, generation: Generation) -> Ticket:
        prompt = [] if generation.cancelled else prompter.render(job.messages)
        room = self.context_length - len(prompt)
        if room < 1:
            raise JobRefused(
                f"messages: the prompt has {len(prompt)} tokens, and the context holds {self.context_length} with the "
                "answer"
            )
        generation.prompt_tokens = len(prompt)
        return Ticket(generation, prompt, min(job.max_tokens or MAX_TOKENS_UNSET, room), job.sampling, job.stop)

    def _withdraw(self, generation: Generation) -> None:
        # The decoder looks at the generation's own flag before each step.
        self._thread.wake()

    def _job_left(self) -> None:
        with self._open_lock:
            self._open -= 1
