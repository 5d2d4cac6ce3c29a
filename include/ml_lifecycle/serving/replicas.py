"""The model servers that one name leads to."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from ml_lifecycle.errors import ServerUnavailableError
from ml_lifecycle.serving.client import ModelClient


def addresses_of(name: str) -> Sequence[str]:
    """The addresses that a name has now, IPv4 and IPv6.

    :raises OSError: it has none, or the name service does not answer.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class Replicas:
    """A client for each server behind a name, looked up anew each time they are gone through.

    Kubernetes gives a headless Service's name the addresses of the pods that are ready, and of no others:
    what takes no traffic is not waited for.

    :param url: what leads to all of them, e.g. ``http://model-server-replicas.production.svc:8093``
    :param token: the bearer token of each
    :param resolve: name to addresses, as :func:`addresses_of`
    """

    def __init__(self, url: str, token: str, resolve: Callable[[str], Sequence[str]] = addresses_of) -> None:
        self._url = url
        self._token = token
        self._resolve = resolve
        self._clients: dict[str, ModelClient] = {}

    def __iter__(self) -> Iterator[ModelClient]:
        """Those of this moment; a server that was there before keeps its client.

        :raises ServerUnavailableError: the name leads to none. Retry: yes.
        """
        name = urlsplit(self._url).hostname or ""
        try:
            addresses = self._resolve(name)
        except OSError as error:
            raise ServerUnavailableError(
                f"no model server is ready behind {name}: {error.strerror or error}"
            ) from error
        if not addresses:
            raise ServerUnavailableError(f"no model server is ready behind {name}: it has no address")
        for address in self._clients.keys() - set(addresses):
            self._clients.pop(address).close()
        for address in addresses:
            if address not in self._clients:
                self._clients[address] = ModelClient(self._url, self._token, address=address)
        return iter([self._clients[address] for address in addresses])
