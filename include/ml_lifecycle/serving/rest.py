"""The REST endpoints of the Open Inference Protocol V2, over one data plane."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote_to_bytes

from ml_lifecycle.serving.batching import INLINE_BYTES, Job
from ml_lifecycle.serving.dataplane import LoadedVariant, Query, Scored, ServedRoute
from ml_lifecycle.serving.decoding import read_json
from ml_lifecycle.serving.door import Client
from ml_lifecycle.serving.encoding import describe, encode_answer
from ml_lifecycle.serving.errors import (
    BadRequestError,
    ServingError,
    TooLargeError,
    TooManyRequestsError,
)
from ml_lifecycle.serving.front import Front, header_text
from ml_lifecycle.serving.http import JSON, Request, Response, error_response, json_response, with_id
from ml_lifecycle.serving.model import Outputs
from ml_lifecycle.serving.openapi import document
from ml_lifecycle.serving.queries import Asked, decode_query, one_version
from ml_lifecycle.shown import shown

log = logging.getLogger(__name__)

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_OCTETS = b"application/octet-stream"
_JSON_LENGTH = b"inference-header-content-length"
_REQUEST_ID = b"x-request-id"
_VERSION = b"ml-lifecycle-version"
_KEY = b"ml-lifecycle-key"
_OPEN = frozenset(("live", "ready"))
# Longer targets are looked up each time: what is remembered must not grow with what clients invent.
_REMEMBERED_BYTES = 256

# Path below /v2/models/{model} or /v2/models/{model}/versions/{version} → operation.
_OF_A_MODEL = {(): "model_metadata", ("infer",): "infer", ("ready",): "model_ready"}
_OF_THE_SERVER = {
    ("v2",): "server_metadata",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("v2", "openapi.json"): "openapi",
    ("v2", "repository", "index"): "repository_index",
    ("metrics",): "metrics",
}
_OF_THE_REPOSITORY = {"load": "repository_load", "unload": "repository_unload"}
_METHODS: Mapping[str, tuple[bytes, ...]] = dict.fromkeys(
    ("infer", "repository_index", *_OF_THE_REPOSITORY.values()), (b"POST",)
)
_READING = (b"GET", b"HEAD")
_NOWHERE = (
    "there is nothing at this path: to score, POST /v2/models/{endpoint}/infer; "
    "GET /v2/openapi.json lists what there is"
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names."""

    operation: str
    model: str = ""
    version: str | None = None


def find_target(path: bytes) -> Target | None:
    """What a percent-encoded path names; None if nothing."""
    return _remembered(path) if len(path) <= _REMEMBERED_BYTES else _find(path)


def _find(path: bytes) -> Target | None:
    try:
        segments = tuple(unquote_to_bytes(segment).decode() for segment in path.split(b"/")[1:])
    except UnicodeDecodeError:
        return None
    if segments[:3] == ("v2", "repository", "models") and len(segments) == 5 and segments[3]:
        operation = _OF_THE_REPOSITORY.get(segments[4])
        return None if operation is None else Target(operation, segments[3])
    if segments[:2] != ("v2", "models") or len(segments) < 3:
        operation = _OF_THE_SERVER.get(segments)
        return None if operation is None else Target(operation)
    model, rest = segments[2], segments[3:]
    version = None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    operation = _OF_A_MODEL.get(rest)
    return None if operation is None or not model or version == "" else Target(operation, model, version)


_remembered = lru_cache(maxsize=1024)(_find)


class _Note:
    """What is kept beside a request until it is answered."""

    __slots__ = ("client", "id", "started", "target")

    def __init__(self, target: Target | None, request_id: str | None) -> None:
        self.started = time.perf_counter()
        self.target = target or Target("none")
        self.id = request_id
        self.client: Client | None = None


class Rest:
    """The application that the HTTP server asks."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._operations: Mapping[str, Callable[[Request, Target], Response | None]] = {
            "server_metadata": self._server_metadata,
            "live": lambda request, target: json_response({"live": True}),
            "ready": self._server_ready,
            "openapi": self._openapi,
            "metrics": lambda request, target: Response(200, front.metrics.expose(), _TEXT),
            "model_metadata": self._model_metadata,
            "model_ready": self._model_ready,
            "infer": self._infer,
            "repository_index": self._repository_index,
            "repository_load": self._repository_load,
            "repository_unload": self._repository_unload,
        }

    # What the HTTP server asks.

    def admit(self, request: Request) -> Response | None:
        """Ask for the token, and look whether the path names anything."""
        target = find_target(request.target)
        given = request.headers.get(_REQUEST_ID)
        request.note = note = _Note(target, None if given is None else given[:200].decode("latin-1"))
        if target is None or target.operation not in _OPEN:
            try:
                client = self._front.door.admit(request.headers.get(b"authorization", b""))
            except TooManyRequestsError as error:
                note.client = error.client
                return error_of(request, error)
            except ServingError as error:
                return error_of(request, error)
            note.client = client
        if target is None:
            return error_response(404, _NOWHERE)
        methods = _METHODS.get(target.operation, _READING)
        if request.method not in methods:
            message = b"%b is not taken at this path: send %b" % (request.method, b" or ".join(methods))
            return error_response(405, message.decode(), [(b"allow", b", ".join(methods))])
        return None

    def answer(self, request: Request) -> None:
        """Answer a whole request, at once or later."""
        target: Target = request.note.target
        try:
            response = self._operations[target.operation](request, target)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            response = error_of(request, error)
        if response is not None:
            _reply(request, response)

    def replied(self, request: Request, response: Response) -> None:
        """Count an answer, and how long it took."""
        note: _Note = request.note or _Note(None, None)
        seconds = time.perf_counter() - note.started
        target = note.target
        # Only names that exist become labels, lest clients invent time series.
        endpoint = target.model if target.model in self._front.plane else ""
        self._front.metrics.request(endpoint, target.operation, response.status, seconds)
        if self._front.access_log is not None:
            self._front.access_log.add(
                self._front.clock(),
                "" if note.client is None else note.client.name,
                request.peer,
                request.method.decode("latin-1"),
                request.target.decode("latin-1"),
                response.status,
                len(request.body),
                seconds * 1000,
                note.id,
            )

    def tick(self) -> None:
        """Write the access log."""
        if self._front.access_log is not None:
            self._front.access_log.flush()

    # The operations.

    def _server_metadata(self, request: Request, target: Target) -> Response:
        models = sorted(self._front.plane.endpoints)
        return json_response(
            {**self._front.about, "models": models, "lake_error": self._front.repository.trouble}
        )

    def _server_ready(self, request: Request, target: Target) -> Response:
        ready = self._front.ready
        return json_response({"ready": ready}, 200 if ready else 503)

    def _openapi(self, request: Request, target: Target) -> Response:
        return json_response(document(self._front.about["version"], list(self._front.plane.endpoints)))

    def _model_ready(self, request: Request, target: Target) -> Response:
        served, loaded = self._front.pick(target.model, target.version)
        return json_response(
            {"name": served.route.endpoint, "version": loaded.variant.version, "ready": True}
        )

    def _model_metadata(self, request: Request, target: Target) -> Response | None:
        error = self._front.plane.get(target.model).error
        served, loaded = self._front.pick(target.model, target.version)
        if loaded.slot.loaded:
            return json_response(_metadata(served, loaded, error))
        self._later(request, lambda: json_response(_metadata(served, loaded, error)))
        return None

    def _repository_index(self, request: Request, target: Target) -> Response:
        asked = _object(request)
        return json_response(self._front.index(asked.get("ready") is True))

    def _repository_load(self, request: Request, target: Target) -> None:
        self._change(request, "load", self._front.repository.load, target.model)

    def _repository_unload(self, request: Request, target: Target) -> None:
        self._change(request, "unload", self._front.repository.unload, target.model)

    def _change(self, request: Request, call: str, change: Callable[[str], None], model: str) -> None:
        request.note.client.change_models(call, model)
        _object(request)

        def work() -> Response:
            change(model)
            return json_response({})

        self._later(request, work)

    def _later(self, request: Request, work: Callable[[], Response]) -> None:
        """Answer what work on a thread makes."""
        self._front.inference.run(work, partial(_reply, request), partial(_fail, request))

    def _infer(self, request: Request, target: Target) -> None:
        """Score the rows of the request."""
        headers = request.headers
        version = target.version
        if _VERSION in headers:
            version = one_version(version, header_text(headers[_VERSION]))
        asked = Asked(
            self._front.plane.served(target.model),
            self._front.clock(),
            version,
            header_text(headers.get(_KEY)),
            request.note.id or None,
        )
        self._front.inference.submit(
            Job(
                asked,
                b"content-encoding" in headers or len(request.body) > INLINE_BYTES,
                request.note.started,
                partial(self._decode, request),
                _answer_of,
                partial(_reply, request) if _REQUEST_ID in headers else request.reply,
                partial(_fail, request),
            )
        )

    def _decode(self, request: Request, asked: Asked) -> tuple[LoadedVariant, Query]:
        body = _body_of(request, self._front.max_bytes)
        loaded, query = decode_query(body, _json_length(request), asked, self._front.max_rows)
        request.note.id = query.id
        return loaded, query


def _object(request: Request) -> Mapping[str, Any]:
    """A body that may be empty, or a JSON object."""
    if not request.body:
        return {}
    return read_json(request.body)[0]


def _reply(request: Request, response: Response) -> None:
    """Reply, with the id if one came in a header."""
    request.reply(with_id(request, response))


def _answer_of(scored: Scored, query: Query, outputs: Outputs) -> Response:
    pieces, json_bytes = encode_answer(scored.route, scored.variant, query, outputs)
    if json_bytes is None:
        return Response(200, pieces[0], JSON)
    length = _JSON_LENGTH, b"%d" % json_bytes
    return Response(200, pieces, _OCTETS, [length])


def _body_of(request: Request, max_bytes: int) -> bytes:
    """The body, decompressed if it came so.

    :raises BadRequestError: it is not what its encoding says. Retry: no.
    :raises TooLargeError: it grows beyond ``max_bytes``. Retry: no.
    """
    encoding = request.headers.get(b"content-encoding", b"identity").lower()
    if encoding == b"identity":
        return request.body
    if encoding not in (b"gzip", b"deflate"):
        raise BadRequestError(f"Content-Encoding must be gzip, deflate or identity, got {_text(encoding)}")
    # Both are known by their first bytes.
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        body = unpacker.decompress(request.body, max_bytes)
    except zlib.error as error:
        raise BadRequestError(f"the body is no {encoding.decode()}: {error}") from error
    if unpacker.unconsumed_tail:
        raise TooLargeError(f"the body has more than {max_bytes} bytes when it is unpacked")
    if not unpacker.eof:
        raise BadRequestError(f"the body is no whole {encoding.decode()}")
    return body


def _text(value: bytes) -> str:
    return shown(value.decode("utf-8", "replace"))


def _json_length(request: Request) -> int | None:
    given = request.headers.get(_JSON_LENGTH)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 18:
        raise BadRequestError(
            f"Inference-Header-Content-Length must be a number of bytes, got {_text(given)}"
        )
    return int(given)


def _fail(request: Request, error: Exception) -> None:
    _reply(request, error_of(request, error))


def error_of(request: Request, error: Exception) -> Response:
    """The answer to an error: ours carry their status, any other is 500 and logged."""
    if isinstance(error, TooManyRequestsError):
        return error_response(error.status, str(error), [(b"retry-after", b"%d" % error.seconds)])
    if isinstance(error, ServingError):
        return error_response(error.status, str(error))
    log.error("%s %s failed", request.method.decode(), request.target.decode(), exc_info=error)
    return error_response(500, "internal error; the server's log has the details")


def _metadata(served: ServedRoute, loaded: LoadedVariant, error: str | None) -> dict[str, Any]:
    route, variant = served.route, loaded.variant
    model = loaded.model()
    return {
        "name": route.endpoint,
        "versions": list(served.versions),
        "platform": "onnxruntime_onnx",
        **describe(variant, model),
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
            **({"broken_rules": variant.broken_rules} if loaded.checks is not None else {}),
        },
    }
