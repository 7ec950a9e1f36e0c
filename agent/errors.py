"""Everything that can go wrong on purpose.

AgentError
├── StartError             the agent does not start, or ends; carries the exit code (provider agent, section 3.2)
│   ├── SettingsInvalid    2
│   ├── NotLinked          3
│   ├── CoordinatorFailed  4
│   ├── ModelRejected      5
│   ├── PostureRefused     6
│   ├── IdentityUnusable   1
│   └── AlreadyRunning     9
└── JobError               one request fails; carries the status of its ``inference_error``
    ├── JobRefused         400
    ├── ModelNotServed     404
    ├── FormatNotServed    404
    ├── EngineFailed       500
    ├── EngineBusy         503
    ├── EngineUnavailable  503
    └── AgentStopping      503

The text of a JobError leaves the machine: it is a constant, a member's name or a number, never a piece of a prompt or
of an answer.
"""

from __future__ import annotations


class AgentError(Exception):
    """The root. The class's docstring is the default message."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class StartError(AgentError):
    """The agent cannot go on."""

    exit_code = 1


class SettingsInvalid(StartError):
    """A setting has a value that is not allowed."""

    exit_code = 2


class NotLinked(StartError):
    """This machine was not linked to an account."""

    exit_code = 3


class CoordinatorFailed(StartError):
    """The coordinator cannot be reached, or does not answer as it should."""

    exit_code = 4


class ModelRejected(StartError):
    """The folder is not a model that can be served."""

    exit_code = 5


class PostureRefused(StartError):
    """This machine cannot protect prompts in its present state."""

    exit_code = 6


class IdentityUnusable(StartError):
    """The machine's signing key cannot be read."""


class AlreadyRunning(StartError):
    """Another agent of this user is running."""

    exit_code = 9


class JobError(AgentError):
    """The request failed."""

    status_code = 500


class JobRefused(JobError):
    """The request is not one that this agent can run."""

    status_code = 400


class ModelNotServed(JobError):
    """This machine does not serve the requested model."""

    status_code = 404


class FormatNotServed(JobError):
    """This machine cannot read sound of this format, only plain WAV."""

    status_code = 404


class EngineFailed(JobError):
    """The engine failed."""

    status_code = 500


class EngineBusy(JobError):
    """The machine's queue is full; try again later."""

    status_code = 503


class EngineUnavailable(JobError):
    """The engine is not available; try again later."""

    status_code = 503


class AgentStopping(JobError):
    """The machine is going offline; try again elsewhere."""

    status_code = 503
