"""A small client of the model server, for release checks and whoever replays traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

import httpx

from ml_lifecycle.errors import LifecycleError, ServerUnavailableError
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.types import announced


class RequestRefusedError(LifecycleError):
    """The server refused the request as wrong: unknown model, bad columns, bad token. Retry: no.

    :param status: the HTTP status
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """Outputs by name, with the version that gave them; matrices are lists of rows."""

    id: str
    model_version: str
    route_revision: int
    model_digest: str
    outputs: Mapping[str, list[Any]]


class ModelClient:
    """Talks to one server; keeps its connections until closed, and may be used as a context manager.

    :param url: e.g. ``http://127.0.0.1:8500``
    :param token: the server's bearer token
    :param timeout: seconds, a request
    :param transport: instead of the network, e.g. to reach an application in this process
    :param address: the one server to ask of those that the URL's name leads to
    """

    def __init__(
        self,
        url: str,
        token: str,
        timeout: float = 10.0,
        transport: httpx.BaseTransport | None = None,
        address: str | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        if address is not None:
            transport = _ToAddress(address, transport or httpx.HTTPTransport())
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._name = url if address is None else f"{url} at {address}"

    def __str__(self) -> str:
        return self._name

    def __enter__(self) -> ModelClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self, endpoint: str | None = None, version: str | None = None) -> bool:
        """Whether the server, or an endpoint or a version of it, answers; False if it is not served.

        :raises ServerUnavailableError: nothing answers at all. Retry: yes.
        """
        path = "/v2/health/ready" if endpoint is None else f"{_path(endpoint, version)}/ready"
        status = self._send("GET", path).status_code
        if status not in (200, 404, 503):
            raise RequestRefusedError(f"GET {path}: the server answers {status}", status)
        return status == 200

    def metadata(self, endpoint: str, version: str | None = None) -> dict[str, Any]:
        """The model metadata; its ``parameters`` hold ``route_revision``, ``model_digest``, ``route_error``.

        :raises ServerUnavailableError: the server does not answer, or has no route loaded. Retry: yes.
        :raises RequestRefusedError: it refuses. Retry: no.
        """
        return self._json("GET", _path(endpoint, version))

    def infer(
        self,
        endpoint: str,
        columns: Mapping[str, Sequence[Any]],
        specs: Sequence[ColumnSpec],
        *,
        version: str | None = None,
        request_id: str | None = None,
        event_time: datetime | Sequence[datetime] | None = None,
        entities: Mapping[str, Sequence[Any]] | None = None,
    ) -> Answer:
        """Score rows given as columns.

        :param columns: column → values; None and NaN are null
        :param specs: the columns the model takes, e.g. ``training.columns``
        :param event_time: timezone-aware, for all rows or one a row; goes to the prediction log
        :param entities: entity key → values, for the prediction log
        :raises ServerUnavailableError: the server does not answer, or answers 5xx. Retry: yes.
        :raises RequestRefusedError: it refuses. Retry: no.
        """
        inputs = [_tensor(spec.name, announced(spec), columns[spec.name]) for spec in specs]
        return self._infer(endpoint, inputs, version, request_id, event_time, entities)

    def infer_entities(
        self,
        endpoint: str,
        entities: Mapping[str, Sequence[Any]],
        *,
        version: str | None = None,
        request_id: str | None = None,
        event_time: datetime | Sequence[datetime] | None = None,
    ) -> Answer:
        """Score rows by entity keys; the server reads their features online. Errors as in :meth:`infer`."""
        inputs = [
            _tensor(key, "BYTES" if isinstance(values[0], str) else "INT64", values)
            for key, values in entities.items()
        ]
        return self._infer(endpoint, inputs, version, request_id, event_time, None)

    def post(self, endpoint: str, request: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        """Send a ready-made V2 request; returns the V2 response. Errors as in :meth:`infer`."""
        return self._json("POST", f"{_path(endpoint, version)}/infer", request)

    def _infer(
        self,
        endpoint: str,
        inputs: list[dict[str, Any]],
        version: str | None,
        request_id: str | None,
        event_time: datetime | Sequence[datetime] | None,
        entities: Mapping[str, Sequence[Any]] | None,
    ) -> Answer:
        parameters: dict[str, Any] = {}
        if isinstance(event_time, datetime):
            parameters["event_time"] = event_time.isoformat()
        elif event_time is not None:
            parameters["event_time"] = [moment.isoformat() for moment in event_time]
        if entities is not None:
            parameters["entities"] = {key: list(values) for key, values in entities.items()}
        request: dict[str, Any] = {"inputs": inputs, "parameters": parameters}
        if request_id is not None:
            request["id"] = request_id
        return _answer(self.post(endpoint, request, version))

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        response = self._send(method, path, body)
        if response.status_code == 200:
            content: dict[str, Any] = response.json()
            return content
        message = f"{method} {path}: {response.status_code}, {_reason(response)}"
        if response.status_code >= 500:
            raise ServerUnavailableError(message)
        raise RequestRefusedError(message, response.status_code)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise ServerUnavailableError(f"{method} {path}: no answer from {self} ({error!r})") from error


class _ToAddress(httpx.BaseTransport):
    """Connects to one of a name's addresses. The request and the certificate's check stay the name's."""

    def __init__(self, address: str, network: httpx.BaseTransport) -> None:
        self._address = address
        self._network = network

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it there."""
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host=self._address)
        return self._network.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._network.close()


def _path(endpoint: str, version: str | None) -> str:
    return f"/v2/models/{endpoint}" + (f"/versions/{version}" if version is not None else "")


def _tensor(name: str, datatype: str, values: Sequence[Any]) -> dict[str, Any]:
    data = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


def _answer(response: Mapping[str, Any]) -> Answer:
    outputs = {}
    for output in response["outputs"]:
        data, shape = output["data"], output["shape"]
        if len(shape) == 2:
            data = [data[start : start + shape[1]] for start in range(0, len(data), shape[1])]
        outputs[output["name"]] = data
    parameters = response["parameters"]
    return Answer(
        id=response["id"],
        model_version=response["model_version"],
        route_revision=parameters["route_revision"],
        model_digest=parameters["model_digest"],
        outputs=outputs,
    )


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
