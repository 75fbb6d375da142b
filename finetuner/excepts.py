"""The errors a user can meet. Each crosses the wire by its class name and is raised again, as itself, by the client."""

from __future__ import annotations


class FinetunerServerError(Exception):
    """The service refused or failed a call.

    :param message: what went wrong, in one sentence.
    :param details: what to do about it, or more about where it happened.
    :param code: a status code, -1 where there is none.
    """

    def __init__(self, message: str = 'An unknown error occurred', details: str = '', code: int = -1):
        super().__init__(message)
        self.message = message
        self.details = details
        self.code = code

    def __str__(self) -> str:
        return f'{self.message} ({self.code}): {self.details}' if self.details else self.message


class UnavailableError(FinetunerServerError):
    """The service, or something that it needs such as its database, cannot be reached: try again in a moment."""


class BusyError(FinetunerServerError):
    """The service has as much to do as it can hold: try again in a moment."""


class AuthenticationError(PermissionError):
    """A token is missing, unknown, revoked or expired."""


class ParameterError(ValueError):
    """A parameter of a request is missing, unknown or malformed. The message names it."""


class DataError(ValueError):
    """A document, row or file of training data is malformed. The message names the place."""


class ArtifactError(ValueError):
    """An artifact is damaged, unsafe, of an unknown format or not to be found."""


class RegistryError(ValueError):
    """A name is taken, unknown or malformed."""


class QuotaError(RegistryError):
    """The account has no room left: its quota is used up."""


class NotFoundError(RegistryError):
    """There is no experiment, run, data set, token or account of this name or id that the caller may see."""


class ArtifactNotFoundError(ArtifactError):
    """There is no artifact of this id that the caller may read."""


class EngineError(RuntimeError):
    """The model cannot answer: it is shut down, or its thread has died."""


class SelectModelRequired(ValueError):
    """The artifact holds several models and `select_model` does not say which to load."""


class RunPreparingError(Exception):
    """The run has not been started yet."""


class RunInProgressError(Exception):
    """The run needs to be finished first."""


class RunFailedError(Exception):
    """The run failed: its logs say why."""
