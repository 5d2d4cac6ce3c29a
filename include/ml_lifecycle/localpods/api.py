"""The Pods API over HTTP: the calls that KubernetesPodOperator makes, without ``exec``.

Every call needs the bearer token. Every refusal is a ``Status`` object. Watching pods is not offered, only
watching events; everything else is listed in :func:`create_app`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ml_lifecycle.localpods.http_input import BodyError, read_body
from ml_lifecycle.localpods.logs import read_log
from ml_lifecycle.localpods.node import Node
from ml_lifecycle.localpods.pods import Event, Pod
from ml_lifecycle.localpods.selectors import Matcher, event_selector, label_selector
from ml_lifecycle.localpods.status import ApiError, bad_request, conflict
from ml_lifecycle.quantity import MAX_SECONDS
from ml_lifecycle.shown import shown

BODY_BYTES = 3 * 2**20  # as in Kubernetes
BODY_SECONDS = 30.0
FOLLOW_SECONDS = 0.1
WATCH_SECONDS = 1800
MAX_VERSION = 2**63 - 1
MAX_DEPTH = 50

VERSION = {
    "major": "1",
    "minor": "33",
    "gitVersion": "v1.33.0-localpods",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "",
    "goVersion": "",
    "compiler": "",
    "platform": "",
}


def create_app(
    node: Node, token: str, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None
) -> Starlette:
    """The ASGI application for ``node``, for whoever has ``token``."""
    namespace = "/api/v1/namespaces/{namespace}"
    pod = namespace + "/pods/{name}"
    app = Starlette(
        routes=[
            Route("/version/", version),
            Route("/version", version),
            Route("/api/v1/nodes", list_nodes),
            Route("/api/v1/pods", list_pods),
            Route(namespace + "/pods", list_pods),
            Route(namespace + "/pods", create_pod, methods=["POST"]),
            Route(pod, read_pod),
            Route(pod, patch_pod, methods=["PATCH"]),
            Route(pod, delete_pod, methods=["DELETE"]),
            Route(pod + "/log", read_pod_log),
            Route(pod + "/eviction", evict_pod, methods=["POST"]),
            Route(namespace + "/events", list_events),
        ],
        middleware=[Middleware(RequireToken, token=token)],
        exception_handlers={
            ApiError: _refuse,
            BodyError: _refuse_body,
            HTTPException: _refuse_http,
            Exception: _fail,
        },
        lifespan=lifespan,
    )
    app.state.node = node
    return app


class RequireToken:
    """Answers 401 unless the request carries the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or refuse it."""
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._wanted):
                error = ApiError(
                    401, "Unauthorized", "Unauthorized: send the header Authorization: Bearer <token>"
                )
                await _status(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def version(request: Request) -> Response:
    """What Airflow's "test connection" asks for."""
    return JSONResponse(VERSION)


async def list_nodes(request: Request) -> Response:
    """The one node there is."""
    node = _node(request)
    return _list("NodeList", node, [node.to_json()])


async def list_pods(request: Request) -> Response:
    """Pods by ``labelSelector``."""
    if _flag(request, "watch"):
        raise bad_request("watching pods is not supported; list them, or watch events")
    if request.query_params.get("fieldSelector"):
        raise bad_request("pods cannot be selected by fields; use labelSelector, or read one by its name")
    matches = label_selector(request.query_params.get("labelSelector", ""))
    node = _node(request)
    pods = [pod for pod in node.pods(request.path_params.get("namespace")) if matches(pod.labels)]
    return _list("PodList", node, [pod.to_json() for pod in pods])


async def create_pod(request: Request) -> Response:
    """Admit a pod; if there is room its process runs when this answers."""
    pod = _node(request).create(request.path_params["namespace"], await _body(request))
    return JSONResponse(pod.to_json(), status_code=201)


async def read_pod(request: Request) -> Response:
    """One pod."""
    return JSONResponse(_pod(request).to_json())


async def patch_pod(request: Request) -> Response:
    """Strategic or plain merge of labels and annotations; for these they are the same."""
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type not in ("application/strategic-merge-patch+json", "application/merge-patch+json"):
        raise ApiError(
            415,
            "UnsupportedMediaType",
            f"a patch of type {content_type!r} is not supported; send application/strategic-merge-patch+json",
        )
    pod = _node(request).patch(**request.path_params, patch=await _body(request))
    return JSONResponse(pod.to_json())


async def delete_pod(request: Request) -> Response:
    """Stop a pod: SIGTERM, and SIGKILL after ``gracePeriodSeconds`` (body or query; else the pod's own)."""
    options = await _body(request)
    grace = _grace(options, request.query_params)
    _check_delete_options(_pod(request), options)
    return JSONResponse(_node(request).delete(**request.path_params, grace_seconds=grace).to_json())


async def evict_pod(request: Request) -> Response:
    """Have the pod end as one that its node evicted."""
    options = (await _body(request)).get("deleteOptions") or {}
    if not isinstance(options, dict):
        raise bad_request("deleteOptions must be a JSON object")
    grace = _grace(options, {})
    _check_delete_options(_pod(request), options)
    _node(request).evict(**request.path_params, grace_seconds=grace)
    return JSONResponse({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}, 201)


async def read_pod_log(request: Request) -> Response:
    """The container's output; with ``follow`` until it has ended."""
    node, pod = _node(request), _pod(request)
    container = request.query_params.get("container", pod.spec.container)
    if container != pod.spec.container:
        raise bad_request(f"container {container} is not valid for pod {pod.name}")
    if pod.pending:
        return Response(status_code=204)  # as Kubernetes says of a pod that has no node yet
    if _flag(request, "previous"):
        raise bad_request(f'previous terminated container "{container}" in pod "{pod.name}" not found')
    since_seconds = _number(request.query_params, "sinceSeconds")
    chunks = read_log(
        node.log_path(pod),
        ended=lambda: pod.finished,
        changed=lambda: node.changed(FOLLOW_SECONDS),
        follow=_flag(request, "follow"),
        timestamps=_flag(request, "timestamps"),
        since=None if since_seconds is None else time.time() - since_seconds,
        tail=_number(request.query_params, "tailLines"),
    )
    return StreamingResponse(chunks, media_type="text/plain")


async def list_events(request: Request) -> Response:
    """Events by ``fieldSelector``; with ``watch`` as a stream of JSON lines for ``timeoutSeconds``."""
    node = _node(request)
    namespace = request.path_params["namespace"]
    matches = event_selector(request.query_params.get("fieldSelector", ""))
    if not _flag(request, "watch"):
        found = _events(node, namespace, matches, after=0)
        return _list("EventList", node, [pod.event_json(event) for pod, event in found])
    after = _number(request.query_params, "resourceVersion", MAX_VERSION) or 0
    seconds = _number(request.query_params, "timeoutSeconds")
    stream = _watch(node, namespace, matches, after, WATCH_SECONDS if seconds is None else seconds)
    return StreamingResponse(stream, media_type="application/json")


async def _watch(
    node: Node, namespace: str, matches: Matcher, after: int, seconds: float
) -> AsyncIterator[bytes]:
    """Held for the whole time, whatever the pods do: clients start the next one as soon as it ends."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        for pod, event in _events(node, namespace, matches, after):
            after = event.version
            yield json.dumps({"type": "ADDED", "object": pod.event_json(event)}).encode() + b"\n"
        if loop.time() >= until:
            return
        await node.changed(until - loop.time())


def _events(node: Node, namespace: str, matches: Matcher, after: int) -> list[tuple[Pod, Event]]:
    return [(pod, event) for pod, event in node.events(namespace, after) if matches(_fields(pod, event))]


def _fields(pod: Pod, event: Event) -> dict[str, str]:
    """The fields that events are selected by."""
    return {
        "involvedObject.kind": "Pod",
        "involvedObject.name": pod.name,
        "involvedObject.namespace": pod.namespace,
        "involvedObject.uid": pod.uid,
        "metadata.name": f"{pod.name}.{event.version:x}",
        "metadata.namespace": pod.namespace,
        "reason": event.reason,
        "type": event.type,
    }


def _node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


def _pod(request: Request) -> Pod:
    return _node(request).get(**request.path_params)


async def _body(request: Request) -> dict[str, Any]:
    """What a call that changes something says."""
    if request.query_params.get("dryRun"):
        raise _no_dry_run()
    raw = await read_body(request, BODY_BYTES, BODY_SECONDS)
    try:
        body = json.loads(raw) if raw else {}
        # What is kept must be fit to be answered, with every list of pods: no NaN, no half of a character.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise bad_request(f"the body is no JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    if not _is_flatter(body, MAX_DEPTH):
        raise _too_deep()
    return body


def _too_deep() -> ApiError:
    return bad_request(f"the body is nested deeper than {MAX_DEPTH} levels")


def _is_flatter(value: Any, levels: int) -> bool:
    """Whether what is within what is within ``value`` ends after so many levels."""
    layer = [value]
    for _ in range(levels):
        inner = (item.values() if isinstance(item, dict) else item for item in layer)
        layer = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not layer:
            return True
    return False


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")


def _number(given: Mapping[str, Any], name: str, most: int = MAX_SECONDS) -> int | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise bad_request(f"{name} must be a whole number, not {shown(value)}") from error
    if not 0 <= number <= most:
        raise bad_request(f"{name} must be from 0 to {most}, and is {shown(value)}")
    return number


def _grace(body: Mapping[str, Any], query: Mapping[str, str]) -> int | None:
    in_query = _number(query, "gracePeriodSeconds")
    return _number(body, "gracePeriodSeconds") if in_query is None else in_query


def _check_delete_options(pod: Pod, options: Mapping[str, Any]) -> None:
    """Hold whoever deletes to the pod that they mean: a younger one may have its name.

    :raises ApiError: 400, they are malformed or ask for a dry run; 409, it is another pod. Retry: no.
    """
    if options.get("dryRun"):
        raise _no_dry_run()
    wanted = options.get("preconditions") or {}
    if not isinstance(wanted, dict):
        raise bad_request("preconditions must be a JSON object")
    given = {"uid": pod.uid, "resourceVersion": str(pod.version)}
    for key, value in given.items():
        if wanted.get(key) not in (None, value):
            raise conflict(pod.name, f"Precondition failed: {key} is {value}, and not {shown(wanted[key])}")


def _no_dry_run() -> ApiError:
    return bad_request("dry runs are not supported: localpods would do it")


def _list(kind: str, node: Node, items: list[dict[str, Any]]) -> Response:
    metadata = {"resourceVersion": str(node.version)}
    return JSONResponse({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items})


def _status(error: ApiError) -> Response:
    return JSONResponse(error.to_json(), status_code=error.code)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _status(error)


def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, BodyError)
    reason = {408: "Timeout", 413: "RequestEntityTooLarge"}.get(error.status, "BadRequest")
    answer = _status(ApiError(error.status, reason, str(error)))
    answer.headers.update(error.headers)
    return answer


def _refuse_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, refused by the router."""
    assert isinstance(error, HTTPException)
    reason = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "BadRequest")
    message = f"{request.method} {request.url.path}: {error.detail}; localpods offers pods and events only"
    return _status(ApiError(error.status_code, reason, message))


def _fail(request: Request, error: Exception) -> Response:
    """A fault of this server's, such as a full disk; the log has the rest."""
    return _status(ApiError(500, "InternalError", f"Internal error: {type(error).__name__}: {error}"))
