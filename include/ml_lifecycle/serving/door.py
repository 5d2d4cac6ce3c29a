"""Who may come in, and how often."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ml_lifecycle.serving.errors import (
    ClientsFileError,
    ForbiddenError,
    TooManyRequestsError,
    UnauthorizedError,
)

log = logging.getLogger(__name__)

_KEYS = frozenset(("token", "requests_per_second", "burst", "repository"))


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who has a token.

    :param rate: requests a second in the long run; None for any number
    :param burst: requests at once, after a pause
    :param repository: whether it may load and unload models
    """

    name: str
    rate: float | None = None
    burst: int = 1
    repository: bool = False

    def change_models(self, call: str, model: str) -> None:
        """Let it load or unload a model, and note who did.

        :raises ForbiddenError: it may not. Retry: no.
        """
        if not self.repository:
            raise ForbiddenError(
                f"{self.name} may not load or unload models: that is for a client of --clients with "
                "repository: true"
            )
        log.info("client %s: %s %.100r", self.name, call, model)


def anybody() -> Client:
    """Whoever has the one token. It asks for predictions, and no more: every client has it."""
    return Client("anybody")


class Door:
    """Knows the clients by their tokens and counts what each has left.

    :param clients: token → client
    :param monotonic: the clock that allowances grow by, seconds
    """

    def __init__(
        self, clients: Mapping[str, Client], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        # Looked up by their digests: how long that takes says nothing about a token.
        self._clients = {_digest(f"Bearer {token}".encode()): client for token, client in clients.items()}
        self._monotonic = monotonic
        self._left: dict[str, tuple[float, float]] = {}  # allowance, as of when

    def admit(self, authorization: bytes) -> Client:
        """The client that sent this header.

        :raises UnauthorizedError: nobody has this token. Retry: no.
        :raises TooManyRequestsError: the client has used up its allowance. Retry: yes, when it says.
        """
        client = self._clients.get(_digest(authorization))
        if client is None:
            raise UnauthorizedError(_why_nobody(authorization))
        if client.rate is not None:
            self._take(client, client.rate)
        return client

    def _take(self, client: Client, rate: float) -> None:
        now = self._monotonic()
        left, since = self._left.get(client.name, (float(client.burst), now))
        left = min(float(client.burst), left + (now - since) * rate)
        if left < 1:
            self._left[client.name] = left, now
            wait = (1 - left) / rate
            raise TooManyRequestsError(
                f"{client.name} may ask {rate:g} times a second, {client.burst} at once; "
                f"the next request is due in {wait:.3g} s",
                client,
                math.ceil(wait),
            )
        self._left[client.name] = left - 1, now


def _why_nobody(authorization: bytes) -> str:
    if authorization.startswith(b"Bearer ") and authorization[7:].strip():
        return "the bearer token is wrong: no client of this server has it"
    return "a bearer token is needed: Authorization: Bearer <token>"


def _digest(text: bytes) -> bytes:
    return sha256(text).digest()


def read_clients(path: Path) -> dict[str, Client]:
    """The clients of a file: name → ``token``; ``requests_per_second``, ``burst``; ``repository``.

    :raises ClientsFileError: the file cannot be read, or says something else. Retry: no.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClientsFileError(f"cannot read the clients file {path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ClientsFileError(f"{path} must map each client's name to its token and limits")
    found: dict[str, Client] = {}
    for name, given in content.items():
        token, client = _client(path, str(name), given)
        if token in found:
            raise ClientsFileError(f"{path}: {found[token].name} and {name} have the same token")
        found[token] = client
    return found


def _client(path: Path, name: str, given: Any) -> tuple[str, Client]:
    if not isinstance(given, dict) or not isinstance(given.get("token"), str) or not given["token"].strip():
        raise ClientsFileError(f'{path}: {name} needs a "token"')
    if unknown := sorted(map(str, given.keys() - _KEYS)):
        raise ClientsFileError(f"{path}: {name} has unknown keys {unknown}; it may have {sorted(_KEYS)}")
    rate, burst = given.get("requests_per_second"), given.get("burst")
    if rate is not None and (type(rate) not in (int, float) or not 0 < rate < math.inf):
        raise ClientsFileError(f"{path}: {name}: requests_per_second must be a number above 0, got {rate!r}")
    if burst is not None and (type(burst) is not int or burst < 1):
        raise ClientsFileError(f"{path}: {name}: burst must be a whole number from 1, got {burst!r}")
    if burst is not None and rate is None:
        raise ClientsFileError(f"{path}: {name} has a burst and no requests_per_second")
    repository = given.get("repository", False)
    if not isinstance(repository, bool):
        raise ClientsFileError(f"{path}: {name}: repository must be true or false, got {repository!r}")
    default = 1 if rate is None else max(1, math.ceil(rate))
    return given["token"].strip(), Client(name, rate, burst or default, repository)
