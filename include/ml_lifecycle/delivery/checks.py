"""Checks of a release against the running server: is it there, and does it answer as it should?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import CHECK_ID_PREFIX
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.types import announced

T = TypeVar("T")

_POLL_SECONDS = 0.1
_LATENCY_REQUESTS = 200


class Client(Protocol):
    """What the checks need of :class:`ml_lifecycle.serving.client.ModelClient`."""

    def ready(self, endpoint: str | None = None) -> bool:
        """Whether the server, or an endpoint of it, answers."""

    def metadata(self, endpoint: str, version: str | None = None) -> dict[str, Any]:
        """The V2 metadata."""

    def post(self, endpoint: str, request: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        """A V2 response to a V2 request."""


@dataclass(frozen=True)
class Clock:
    """Time, passed in: ``now`` is written down, ``monotonic`` and ``sleep`` only wait."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Golden:
    """A V2 request and the answer it must get.

    :param expected: output name → values, row-major
    :param absolute: largest difference of a number
    """

    request: Mapping[str, Any]
    expected: Mapping[str, Sequence[Any]]
    absolute: float

    @classmethod
    def read(cls, lake: Lake, path: str) -> Golden:
        """The evaluation's ``golden.json``."""
        data = lake.read_json(path)
        return cls(data["request"], data["expected"], data["absolute"])


def not_followed(client: Client, route: Route) -> str | None:
    """What a server does instead of serving the route, or a later one; None if it does serve it.

    A route without variants is followed by serving nothing at its endpoint.
    """
    try:
        if not route.variants:
            return "it still serves" if client.ready(route.endpoint) else None
        serving = client.metadata(route.endpoint)["parameters"]
    except LifecycleError as error:
        return str(error)
    if serving["route_revision"] >= route.revision:
        return None
    refused = f" and says: {serving['route_error']}" if serving.get("route_error") else ""
    return f"it serves revision {serving['route_revision']}{refused}"


def wait_for(look: Callable[[], T], seconds: float, clock: Clock, tell: Callable[[T], None]) -> T:
    """Look until there is nothing to say any more; at the deadline, what there is.

    :param tell: gets what there is before each pause
    """
    deadline = clock.monotonic() + seconds
    while (found := look()) and clock.monotonic() < deadline:
        tell(found)
        clock.sleep(_POLL_SECONDS)
    return found


def run_checks(
    client: Client, route: Route, variant: Variant, golden: Golden, max_latency_ms: float | None
) -> list[str]:
    """Run every check on one of the route's variants; what failed, empty if none did.

    The champion is asked as clients ask it; any other by its version, as it gets little traffic or none.

    :param max_latency_ms: p99 over one-row requests; None leaves the latency unchecked
    """
    asked = _Asked(client, route, variant)
    checks: dict[str, Callable[[], str | None]] = {
        "columns": lambda: _check_columns(asked),
        "golden rows": lambda: _check_golden(asked, golden),
        "missing input": lambda: _check_refused(asked, _without_an_input(golden.request)),
        "wrong datatype": lambda: _check_refused(asked, _with_a_wrong_datatype(golden.request)),
    }
    if max_latency_ms is not None:
        limit = max_latency_ms
        checks["latency"] = lambda: _check_latency(asked, golden.request, limit)
    failures = []
    for name, check in checks.items():
        try:
            failure = check()
        # Whatever a server answers, the release must not stay half done.
        except Exception as error:  # noqa: BLE001
            failure = f"{type(error).__name__}: {error}"
        if failure is not None:
            failures.append(f"{name}: {failure}")
    return failures


@dataclass(frozen=True)
class _Asked:
    """A variant behind a running server."""

    client: Client
    route: Route
    variant: Variant

    def metadata(self) -> dict[str, Any]:
        return self.client.metadata(self.route.endpoint, self._version)

    def post(self, request: Mapping[str, Any], what: str) -> dict[str, Any]:
        name = f"{CHECK_ID_PREFIX}{self.route.endpoint}-{self.route.revision}-{what}"
        return self.client.post(self.route.endpoint, {**request, "id": name}, self._version)

    @property
    def _version(self) -> str | None:
        alone = self.variant.role == "champion" and len(self.route.variants) == 1
        return None if alone else self.variant.version


def _check_columns(asked: _Asked) -> str | None:
    announces = {one["name"]: one["datatype"] for one in asked.metadata()["inputs"]}
    columns: Sequence[ColumnSpec] = asked.variant.columns
    expected = {column.name: announced(column) for column in columns}
    return None if announces == expected else f"the server takes {announces}, the model {expected}"


def _check_golden(asked: _Asked, golden: Golden) -> str | None:
    response = asked.post(golden.request, "golden")
    digest = response["parameters"]["model_digest"]
    if digest != asked.variant.model_digest:
        return f"model {digest} answered, not {asked.variant.model_digest}"
    answers = {output["name"]: output["data"] for output in response["outputs"]}
    if missing := sorted(golden.expected.keys() - answers.keys()):
        return f"the answer lacks {missing}"
    for name, expected in golden.expected.items():
        if (difference := _difference(answers[name], expected, golden.absolute)) is not None:
            return f"{name}{difference}"
    return None


def _difference(answer: Sequence[Any], expected: Sequence[Any], absolute: float) -> str | None:
    flat, wanted = _flat(answer), _flat(expected)
    if len(flat) != len(wanted):
        return f" has {len(flat)} values, expected {len(wanted)}"
    for place, (value, target) in enumerate(zip(flat, wanted, strict=True)):
        if isinstance(target, float):
            # Said this way round, an answer that is no number or NaN is a difference too.
            alike = isinstance(value, int | float) and abs(value - target) <= absolute
        else:
            alike = str(value) == str(target)
        if not alike:
            return f"[{place}] is {value!r}, expected {target!r}"
    return None


def _flat(values: Sequence[Any]) -> list[Any]:
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _check_refused(asked: _Asked, request: Mapping[str, Any]) -> str | None:
    from ml_lifecycle.serving.client import RequestRefusedError  # its HTTP library is an extra

    try:
        asked.post(request, "refused")
    except RequestRefusedError as error:
        return None if error.status == 400 else f"answered {error.status}, expected 400"
    return "was answered with predictions, expected 400"


def _without_an_input(request: Mapping[str, Any]) -> dict[str, Any]:
    # One more tensor of a wrong name, so that a model with a single column is covered.
    first, *others = request["inputs"]
    return {**request, "inputs": [*others, {**first, "name": "no_such_input"}]}


def _with_a_wrong_datatype(request: Mapping[str, Any]) -> dict[str, Any]:
    first, *others = request["inputs"]
    if first["datatype"] == "BYTES":
        wrong = {**first, "datatype": "FP32", "data": [0.5] * math.prod(first["shape"])}
    else:
        wrong = {**first, "datatype": "BYTES", "data": ["x"] * math.prod(first["shape"])}
    return {**request, "inputs": [wrong, *others]}


def _check_latency(asked: _Asked, request: Mapping[str, Any], max_latency_ms: float) -> str | None:
    rows = _single_rows(request)
    milliseconds = []
    for number in range(_LATENCY_REQUESTS):
        started = time.perf_counter()
        asked.post(rows[number % len(rows)], f"latency-{number}")
        milliseconds.append((time.perf_counter() - started) * 1000)
    p99 = sorted(milliseconds)[math.ceil(0.99 * len(milliseconds)) - 1]
    if p99 <= max_latency_ms:
        return None
    return f"p99 is {p99:.1f} ms over {_LATENCY_REQUESTS} requests, at most {max_latency_ms:g} ms is allowed"


def _single_rows(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = request["inputs"][0]["shape"][0]
    return [
        {**request, "inputs": [_row(tensor, row, rows) for tensor in request["inputs"]]}
        for row in range(rows)
    ]


def _row(tensor: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    width = len(tensor["data"]) // rows
    data = tensor["data"][row * width : (row + 1) * width]
    return {**tensor, "shape": [1, *tensor["shape"][1:]], "data": data}
