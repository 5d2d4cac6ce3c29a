"""``python -m ml_lifecycle.serving.sagemaker``: a model server as Amazon SageMaker runs containers.

It serves one version of one revision for as long as it lives: which is said by the variables of
:class:`ml_lifecycle.serving.pinned.Pinned`. Another route is another set of containers.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
from urllib.parse import quote

from ml_lifecycle.serving.front import Front
from ml_lifecycle.serving.http import Request, Response, error_response
from ml_lifecycle.serving.pinned import METADATA, Pinned, PinnedVariablesError
from ml_lifecycle.serving.rest import Rest

PORT = 8080
# Where SageMaker wants another port, as it does of several containers behind one endpoint.
PORT_VARIABLE = "SAGEMAKER_BIND_TO_PORT"

_ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
EXIT_USAGE = 2
EXIT_PORT = 3


class Invocations:
    """SageMaker's two paths, as ways to the protocol's own.

    No token is asked for: SageMaker has asked for a signature, and nobody else reaches a container.

    :param token: one that the server knows
    """

    def __init__(self, front: Front, pinned: Pinned, token: str) -> None:
        self._rest = Rest(front)
        model, version = quote(pinned.endpoint, safe=""), quote(pinned.version, safe="")
        self._model = f"/v2/models/{model}/versions/{version}".encode()
        self._authorization = f"Bearer {token}".encode()

    def admit(self, request: Request) -> Response | None:
        """Lead the request to where the protocol has it answered."""
        if request.target == b"/ping":
            request.target = b"/v2/health/ready"
        elif request.target != b"/invocations":
            return error_response(404, "Not Found: a container has /ping and /invocations")
        elif request.method == b"POST" and request.headers.get(_ATTRIBUTES) == METADATA.encode():
            request.method, request.target = b"GET", self._model
        else:
            request.target = self._model + b"/infer"
        request.headers[b"authorization"] = self._authorization
        return self._rest.admit(request)

    def answer(self, request: Request) -> None:
        """Answer a whole request."""
        self._rest.answer(request)

    def replied(self, request: Request, response: Response) -> None:
        """Count an answer."""
        self._rest.replied(request, response)

    def tick(self) -> None:
        """Nothing is due."""
        self._rest.tick()


def main() -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        pinned = Pinned.from_variables(os.environ)
    except PinnedVariablesError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.serving.server import ModelServer, listen, serve

    port = int(os.environ.get(PORT_VARIABLE, PORT))
    try:
        listener = listen("0.0.0.0", port)
    except OSError as error:
        print(f"cannot listen on port {port}: {error.strerror}", file=sys.stderr)
        return EXIT_PORT
    # Until the event loop takes the signals: an orderly stop exits with 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    token = secrets.token_urlsafe(24)
    server = ModelServer(
        Lake(pinned.lake),
        pinned.environment,
        token,
        pinned=pinned,
        application=lambda front: Invocations(front, pinned, token),
    )
    print(f"serving {pinned.environment} on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    serve(server, listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
