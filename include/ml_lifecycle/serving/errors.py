"""What a model server answers instead of predictions; ``status`` is the HTTP status a client sees."""

from __future__ import annotations

from typing import Any

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.serving.types import Broken


class ServingError(LifecycleError):
    """Base of the server's answers that are no predictions. Retry: only if a subclass says so."""

    status = 500


class BadRequestError(ServingError):
    """The request is malformed, or does not fit the model's columns. Retry: no, change the request."""

    status = 400


class UnknownEntityError(BadRequestError):
    """The online store has nothing of an entity, and the endpoint refuses such. Retry: once it has.

    :param rows: of the request, of which that is so
    """

    status = 404

    def __init__(self, message: str, rows: int) -> None:
        super().__init__(message)
        self.rows = rows


class BrokenRulesError(BadRequestError):
    """Values of a vector break rules of their columns, and the endpoint refuses such. Retry: no.

    :param broken: columns, rules of theirs, and how many values break them
    """

    def __init__(self, message: str, broken: Broken) -> None:
        super().__init__(message)
        self.broken = broken


class UnauthorizedError(ServingError):
    """Nobody has the token that was sent. Retry: no."""

    status = 401


class ForbiddenError(ServingError):
    """The client is known and may not do this. Retry: no."""

    status = 403


class TooManyRequestsError(ServingError):
    """The client has used up its allowance. Retry: yes, after ``seconds``.

    :param client: who it is
    :param seconds: whole ones, until it may ask again
    """

    status = 429
    retryable = True

    def __init__(self, message: str, client: Any, seconds: int) -> None:
        super().__init__(message)
        self.client = client
        self.seconds = seconds


class UnknownModelError(ServingError):
    """The server serves no such endpoint, or not this version of it. Retry: no."""

    status = 404


class TooLargeError(ServingError):
    """The body or the number of rows is above the server's limit. Retry: no, send smaller requests."""

    status = 413


class ModelFailedError(ServingError):
    """ONNX Runtime could not run the model on well-formed columns. Retry: no, look at the model."""

    status = 500


class NotLoadedError(ServingError):
    """The endpoint has a published route that could not be loaded yet. Retry: yes."""

    status = 503
    retryable = True


class FeaturesUnavailableError(ServingError):
    """The online store did not answer. Retry: yes."""

    status = 503
    retryable = True


class ClientsFileError(LifecycleError):
    """The file that names the clients is not as it must be. Retry: no."""


class PortError(LifecycleError):
    """A port cannot be listened on. Retry: no."""


class RouteRefusedError(LifecycleError):
    """A published route cannot be served; the one before stays live. Retry: no, publish another."""
