"""What every engine is to the agent, whatever its model makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol, TypeVar

from agent.engine.job import Occupancy, Throughput

State = Literal["loading", "ready", "reloading", "crashed"]

J_contra = TypeVar("J_contra", contravariant=True)
E_co = TypeVar("E_co", covariant=True)


class Running(Protocol[E_co]):
    """A submitted job: iterate over what it makes. Raises JobError while iterating; nothing follows."""

    def __aiter__(self) -> AsyncIterator[E_co]: ...

    def cancel(self) -> None:
        """Stop at the next chance. Does nothing to a job that has ended."""
        ...


class Engine(Protocol[J_contra, E_co]):
    """One loaded model. ``max_concurrent`` is how many jobs it works on at once."""

    max_concurrent: int

    @property
    def state(self) -> State: ...

    @property
    def occupancy(self) -> Occupancy: ...

    async def start(self) -> Throughput:
        """Load the model and try it. Raises ModelRejected."""
        ...

    def submit(self, job: J_contra) -> Running[E_co]:
        """Queue a job. Raises EngineBusy or EngineUnavailable."""
        ...

    def close(self) -> None:
        """End all jobs and free the model."""
        ...
