"""The REST endpoints of the Open Inference Protocol V2."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, ParamSpec, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_lifecycle.http_input import BodyError, read_body
from ml_lifecycle.serving.codecs import decode_query, describe, encode_prediction
from ml_lifecycle.serving.dataplane import DataPlane, Endpoint, LoadedVariant, ServedRoute
from ml_lifecycle.serving.errors import ServingError
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.openapi import document
from ml_lifecycle.serving.prediction_log import LogEntry, PredictionLog

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# A hand-off to a thread costs about as much CPU as decoding and scoring one row (measured: 46 against
# 43 to 72 µs); a request of this size holds the event loop for about half a millisecond.
_INLINE_BYTES = 32 * 1024
_JSON = "application/json"
_OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready"))


@dataclass(frozen=True)
class Limits:
    """What one request may be.

    :param body_bytes: larger bodies are refused unread
    :param body_seconds: how long a body may take to come
    :param rows: rows in one request
    """

    body_bytes: int = 8 * 1024 * 1024
    body_seconds: float = 30.0
    rows: int = 10_000


class Rest:
    """The endpoints, over one data plane.

    :param ready: whether the server may be sent requests
    :param executor: where work goes that would hold the event loop up
    :param clock: the wall clock, for ``received_at``
    """

    def __init__(
        self,
        environment: str,
        version: str,
        plane: DataPlane,
        prediction_log: PredictionLog,
        metrics: Metrics,
        ready: Callable[[], bool],
        executor: Executor,
        clock: Callable[[], datetime],
        limits: Limits,
    ) -> None:
        self._about: dict[str, Any] = {
            "name": "ml_lifecycle",
            "version": version,
            "extensions": [],
            "environment": environment,
        }
        self._plane = plane
        self._log = prediction_log
        self._metrics = metrics
        self._ready = ready
        self._executor = executor
        self._clock = clock
        self._limits = limits

    def paths(self) -> list[Path]:
        """The routing table, searched from the top: the busiest first."""
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        return [
            Path(f"{model}/infer", self.infer, methods=["POST"]),
            Path(f"{version}/infer", self.infer, methods=["POST"]),
            Path("/v2", self.server_metadata),
            Path("/v2/health/live", self.live),
            Path("/v2/health/ready", self.ready),
            Path("/v2/openapi.json", self.openapi),
            Path("/metrics", self.metrics),
            Path(model, self.model_metadata),
            Path(version, self.model_metadata),
            Path(f"{model}/ready", self.model_ready),
            Path(f"{version}/ready", self.model_ready),
        ]

    async def server_metadata(self, request: Request) -> Response:
        """Name and version of the server."""
        return _json({**self._about, "models": sorted(self._plane.endpoints)})

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Requests may be sent."""
        ready = self._ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def openapi(self, request: Request) -> Response:
        """What can be asked, for clients that are made from such documents."""
        return _json(document(self._about["version"], list(self._plane.endpoints)))

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def model_ready(self, request: Request) -> Response:
        """The endpoint, or this version of it, answers."""
        served, loaded = self._pick(request)
        return _json({"name": served.route.endpoint, "version": loaded.variant.version, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        """Inputs, outputs and what is live."""
        error = self._plane.get(request.path_params["model"]).error
        return _json(_metadata(*self._pick(request), error))

    async def infer(self, request: Request) -> Response:
        """Score the rows of the request; they are logged before the answer is sent."""
        received_at, started = self._clock(), time.perf_counter()
        served, loaded = self._pick(request)
        body = await read_body(request, self._limits.body_bytes, self._limits.body_seconds)
        large = len(body) > _INLINE_BYTES
        query = await self._call(large, decode_query, body, loaded.variant, self._limits.rows, received_at)
        # Reading the online store waits, and the first time imports Feast.
        prediction = await self._call(large or query.features is None, loaded.infer, served.route, query)
        answer = await self._call(large, encode_prediction, prediction)
        latency_ms = (time.perf_counter() - started) * 1000
        self._log.append(LogEntry(prediction, latency_ms, len(body)))
        self._metrics.scored(served.route.endpoint, loaded.variant.version, loaded.variant.role, query.rows)
        return Response(answer, media_type=_JSON)

    async def _call(self, offload: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not offload:
            return function(*args, **kwargs)
        work = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _pick(self, request: Request) -> tuple[ServedRoute, LoadedVariant]:
        served = self._plane.served(request.path_params["model"])
        return served, served.pick(request.path_params.get("version"))


class Front:
    """ASGI middleware: asks for the token, counts and times every request."""

    def __init__(self, app: ASGIApp, token: str, plane: DataPlane, metrics: Metrics) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._plane = plane
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 without the token, else pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            admitted = scope["path"] in _OPEN_PATHS or self._has_token(scope)
            app = (
                self._app
                if admitted
                else _error(401, "a bearer token is needed: Authorization: Bearer <token>")
            )
            await app(scope, receive, send_and_note)
        finally:
            self._count(scope, status, time.perf_counter() - started)

    def _has_token(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Only names that exist become labels, lest clients invent time series.
        model = scope.get("path_params", {}).get("model", "")
        endpoint = model if self._plane.get(model) != Endpoint() else ""
        operation = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.request(endpoint, operation, status, seconds)


async def answer_error(request: Request, error: Exception) -> Response:
    """Map an error to its status: ours carry it, Starlette's too, any other is 500 and logged."""
    if isinstance(error, ServingError):
        return _error(error.status, str(error))
    if isinstance(error, HTTPException):
        return _error(error.status_code, error.detail, error.headers)
    if isinstance(error, BodyError):
        return _error(error.status, str(error), error.headers)
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, "internal error; the server's log has the details")


def _metadata(served: ServedRoute, loaded: LoadedVariant, error: str | None) -> dict[str, Any]:
    route, variant = served.route, loaded.variant
    return {
        "name": route.endpoint,
        "versions": list(served.versions),
        "platform": "onnxruntime_onnx",
        **describe(loaded.model),
        "parameters": {
            "model": route.model,
            "version": variant.version,
            "task": variant.task,
            "classes": list(variant.classes),
            "route_revision": route.revision,
            "route_error": error,
            "model_digest": variant.model_digest,
            "columns": [
                {"name": column.name, "type": column.type, "nullable": column.nullable}
                for column in variant.columns
            ],
            "entity_keys": list(variant.entity_keys),
        },
    }


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type=_JSON)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)
