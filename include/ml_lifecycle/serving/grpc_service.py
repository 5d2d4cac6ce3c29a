"""The gRPC service of the Open Inference Protocol V2, over the same data plane as REST."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc

from ml_lifecycle.serving.batching import INLINE_BYTES, Job
from ml_lifecycle.serving.dataplane import LoadedVariant, Query
from ml_lifecycle.serving.encoding import describe
from ml_lifecycle.serving.errors import PortError, ServingError
from ml_lifecycle.serving.front import Front, header_text
from ml_lifecycle.serving.grpc_messages import MESSAGES, SERVICE
from ml_lifecycle.serving.grpc_tensors import make_response, read_request, tensor_metadata
from ml_lifecycle.serving.queries import Asked, make_query, one_version

log = logging.getLogger(__name__)

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_REQUEST_ID = "x-request-id"
_VERSION = "ml-lifecycle-version"
_OPEN = frozenset(("ServerLive", "ServerReady"))
_CHANGES = {"RepositoryModelLoad": "load", "RepositoryModelUnload": "unload"}

Metadata = Mapping[str, bytes]
Method = Callable[[Any, Metadata], Awaitable[Any]]


class GrpcService:
    """The methods, and the server that listens."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> int:
        """Listen; returns the port.

        :param address: host:port; port 0 takes a free one
        :raises PortError: the port is taken. Retry: no.
        """
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._front.max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        methods: Mapping[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        handlers = {name: self._handler(name, method) for name, method in methods.items()}
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise PortError(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        return port

    async def stop(self, seconds: float) -> None:
        """Answer what is open, at most so long."""
        if self._server is not None:
            await self._server.stop(seconds)

    def _handler(self, name: str, method: Method) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            status, client = 500, ""
            metadata: Metadata = {}
            try:
                metadata = {key: _bytes(value) for key, value in context.invocation_metadata() or ()}
                if name not in _OPEN:
                    known = self._front.door.admit(metadata.get("authorization", b""))
                    client = known.name
                    if name in _CHANGES:
                        known.change_models(_CHANGES[name], request.model_name)
                response = await method(request, metadata)
                status = 200
                return response
            except ServingError as error:
                status = error.status
                code = _CODES.get(status, grpc.StatusCode.INTERNAL)
                await context.abort(code, str(error), _id_of(metadata))
            except asyncio.CancelledError:
                status = 499  # the client has gone, or waits no longer
                raise
            except Exception as error:  # whatever it is, the client gets an answer
                log.error("%s failed", name, exc_info=error)
                message = "internal error; the server's log has the details"
                await context.abort(grpc.StatusCode.INTERNAL, message, _id_of(metadata))
            finally:
                model = getattr(request, "model_name", "") or getattr(request, "name", "")
                endpoint = model if model in self._front.plane else ""
                seconds = time.perf_counter() - started
                self._front.metrics.request(endpoint, f"grpc_{name}", status, seconds)
                if self._front.access_log is not None:
                    self._front.access_log.add(
                        self._front.clock(),
                        client,
                        context.peer(),
                        "gRPC",
                        f"{name} {model}" if model else name,
                        status,
                        request.ByteSize(),
                        seconds * 1000,
                        getattr(request, "id", None) or None,
                    )

        messages = MESSAGES[f"{name}Request"], MESSAGES[f"{name}Response"]
        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=messages[0].FromString,
            response_serializer=messages[1].SerializeToString,
        )

    async def _server_live(self, request: Any, metadata: Metadata) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _server_ready(self, request: Any, metadata: Metadata) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._front.ready)

    async def _server_metadata(self, request: Any, metadata: Metadata) -> Any:
        about = {name: self._front.about[name] for name in ("name", "version", "extensions")}
        return MESSAGES["ServerMetadataResponse"](**about)

    async def _model_ready(self, request: Any, metadata: Metadata) -> Any:
        try:
            self._front.pick(request.name, request.version or None)
        except ServingError:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=True)

    async def _model_metadata(self, request: Any, metadata: Metadata) -> Any:
        served, loaded = self._front.pick(request.name, request.version or None)
        about = describe(loaded.variant, await self._later(loaded.model))
        return MESSAGES["ModelMetadataResponse"](
            name=served.route.endpoint,
            versions=served.versions,
            platform="onnxruntime_onnx",
            **{side: [tensor_metadata(one) for one in tensors] for side, tensors in about.items()},
        )

    async def _repository_index(self, request: Any, metadata: Metadata) -> Any:
        return MESSAGES["RepositoryIndexResponse"](models=self._front.index(request.ready))

    async def _repository_load(self, request: Any, metadata: Metadata) -> Any:
        await self._later(partial(self._front.repository.load, request.model_name))
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _repository_unload(self, request: Any, metadata: Metadata) -> Any:
        await self._later(partial(self._front.repository.unload, request.model_name))
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def _later(self, work: Callable[[], Any]) -> Any:
        """What work on a thread returns."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._front.inference.run(work, partial(_settle, done), partial(_settle_wrong, done))
        return await done

    async def _model_infer(self, request: Any, metadata: Metadata) -> Any:
        version = request.model_version or None
        if _VERSION in metadata:
            version = one_version(version, header_text(metadata[_VERSION]))
        asked = Asked(
            self._front.plane.served(request.model_name),
            self._front.clock(),
            version,
            header_text(metadata.get("ml-lifecycle-key")),
            (header_text(metadata.get(_REQUEST_ID)) or "")[:200] or None,
        )
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._front.inference.submit(
            Job(
                asked,
                request.ByteSize() > INLINE_BYTES,
                time.perf_counter(),
                partial(self._decode, request),
                partial(make_response, bool(request.raw_input_contents)),
                partial(_settle, answered),
                partial(_settle_wrong, answered),
            )
        )
        return await answered

    def _decode(self, request: Any, asked: Asked) -> tuple[LoadedVariant, Query]:
        return make_query(read_request(request), asked, self._front.max_rows, request.ByteSize())


def _id_of(metadata: Metadata) -> tuple[tuple[str, bytes], ...]:
    """The id that came in the metadata, to go back with an error: an answer has a field for it."""
    given = metadata.get(_REQUEST_ID)
    return () if given is None else ((_REQUEST_ID, given),)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _settle(answered: asyncio.Future[Any], response: Any) -> None:
    if not answered.done():  # the client may have gone
        answered.set_result(response)


def _settle_wrong(answered: asyncio.Future[Any], error: Exception) -> None:
    if not answered.done():
        answered.set_exception(error)
