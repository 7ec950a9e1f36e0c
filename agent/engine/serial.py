"""``SerialEngine``: a model that works on one job after the other, step by step, on an MLX thread.

What a model of images, speech or embeddings does is a generator: whatever it does between two yields is one step, after
which others of the thread have their turn and a cancelled job ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, Protocol, TypeVar

from agent.engine.engine import State
from agent.engine.job import Occupancy, Throughput
from agent.engine.thread import MlxThread
from agent.errors import EngineBusy, EngineFailed, EngineUnavailable, JobError, ModelRejected
from agent.log import describe

_log = logging.getLogger(__name__)

WAITING_MAX = 2
"""Jobs that may wait while one runs; the next is refused (provider agent, section 8.1)."""

NOT_MEASURED = Throughput(prefill_tps=0.0, decode_tps=0.0)
"""Media is not measured in tokens a second."""

J = TypeVar("J")
E = TypeVar("E")
J_contra = TypeVar("J_contra", contravariant=True)
E_co = TypeVar("E_co", covariant=True)


class Model(Protocol[J_contra, E_co]):
    """A loaded model. All of it runs on the engine's thread."""

    def warm_up(self) -> None:
        """Do a little work of every sort. Whatever it raises means that the model cannot be served."""
        ...

    def run(self, job: J_contra, is_cancelled: Callable[[], bool]) -> Iterator[E_co | None]:
        """Do a job: a yield ends each step, None when the step made nothing yet. A long step asks now and then whether
        the job is cancelled, and raises Cancelled when it is. Raises JobError."""
        ...


class Cancelled(Exception):
    """Nobody waits for the job any more."""


class Work(Generic[E]):
    """A job on its way. It belongs to the event loop that submitted it."""

    def __init__(self) -> None:
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[E | JobError | None] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[E]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, JobError):
                raise event
            yield event

    def cancel(self) -> None:
        self.cancelled = True
        self._events.put_nowait(None)

    def deliver(self, event: E | JobError | None) -> None:
        """From the engine's thread: hand over what was made, or the end."""
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:  # the loop was closed, with whoever waited
            self.cancelled = True

    def _put(self, event: E | JobError | None) -> None:
        if not self.cancelled:
            self._events.put_nowait(event)


class SerialEngine(Generic[J, E]):
    def __init__(self, name: str, thread: MlxThread, load: Callable[[], Model[J, E]]) -> None:
        """``load`` makes the model, on the thread. Nothing is loaded before ``start``."""
        self.max_concurrent = 1
        self._name = name
        self._thread = thread
        self._load = load
        self._model: Model[J, E] | None = None
        self._waiting: deque[tuple[J, Work[E]]] = deque()
        self._current: tuple[Work[E], Iterator[E | None]] | None = None

    async def start(self) -> Throughput:
        await asyncio.wrap_future(self._thread.call(self._start))
        return NOT_MEASURED

    def submit(self, job: J) -> Work[E]:
        if self._model is None:
            raise EngineUnavailable
        if len(self._waiting) + (self._current is not None) > WAITING_MAX:
            raise EngineBusy
        work: Work[E] = Work()
        self._waiting.append((job, work))
        self._thread.wake()
        return work

    @property
    def state(self) -> State:
        return "loading" if self._model is None else "ready"

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(running=int(self._current is not None), waiting=len(self._waiting))

    def close(self) -> None:
        self._thread.call(self._stop)

    # --- on the thread -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            model = self._load()
            model.warm_up()
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(
                f"{self._name} cannot be served ({describe(error)}). Download the model again, or choose another one."
            ) from error
        self._model = model
        self._thread.attach(self)

    def _stop(self) -> None:
        if self._model is None:
            return
        self._model = None
        self._thread.detach(self)
        ended = [work for _, work in self._waiting]
        if self._current is not None:
            ended.append(self._current[0])
        self._waiting.clear()
        self._current = None
        for work in ended:
            work.deliver(EngineUnavailable())

    def step(self) -> bool:
        model = self._model
        if model is None:
            return False
        if self._current is None:
            if not self._waiting:
                return False
            job, work = self._waiting.popleft()
            self._current = (work, model.run(job, lambda: work.cancelled))
        work, steps = self._current
        self._current = None if work.cancelled or not self._advance(work, steps) else (work, steps)
        return True

    def wake_at(self) -> float | None:
        return None

    def _advance(self, work: Work[E], steps: Iterator[E | None]) -> bool:
        """Do one step; whether the job goes on."""
        try:
            event = next(steps)
        except StopIteration:
            work.deliver(None)
            return False
        except Cancelled:
            return False
        except JobError as error:
            work.deliver(error)
            return False
        except Exception as error:  # noqa: BLE001 - one job's failure is its own
            _log.error("%s failed a job: %s", self._name, describe(error))
            work.deliver(EngineFailed())
            return False
        if event is not None:
            work.deliver(event)
        return True
