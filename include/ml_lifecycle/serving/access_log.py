"""One line a request: who asked what and what came of it. Never what was in it."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import IO

import orjson

log = logging.getLogger(__name__)


class AccessLog:
    """Collects lines and writes them when told to: a line costs a request a microsecond or two.

    :param file: where to, unbuffered; lines are JSON objects
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lines: list[bytes] = []

    def add(
        self,
        at: datetime,
        client: str,
        peer: str,
        method: str,
        path: str,
        status: int,
        size: int,
        milliseconds: float,
        request_id: str | None,
    ) -> None:
        """Note an answered request.

        :param client: name of the client; empty if it is unknown
        :param size: bytes of the request's body
        """
        self._lines.append(
            orjson.dumps(
                {
                    "at": at,
                    "client": client,
                    "peer": peer,
                    "method": method,
                    "path": path,
                    "status": status,
                    "bytes": size,
                    "ms": round(milliseconds, 3),
                    "id": request_id,
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
        )

    def flush(self) -> None:
        """Write what was collected."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:  # a full disk must not stop the answers
            log.warning("%d lines of the access log are lost: %s", len(lines), error)
