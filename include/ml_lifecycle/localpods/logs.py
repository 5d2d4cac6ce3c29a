"""Reading a container's log while it is being written.

Each line starts with the time it was read at, ``2013-04-01T06:00:00.123456789Z``, always as wide, so that
times compare as text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

_STAMP = len("2013-04-01T06:00:00.123456789Z ")
_CHUNK = 512 * 1024  # more than the longest line


async def read_log(
    path: Path,
    *,
    ended: Callable[[], bool],
    changed: Callable[[], Awaitable[None]],
    follow: bool = False,
    timestamps: bool = False,
    since: float | None = None,
    tail: int | None = None,
) -> AsyncIterator[bytes]:
    """Yield the log's lines in chunks; a missing file is an empty log.

    :param ended: whether nothing will be added any more
    :param changed: returns when it may be worth looking again
    :param since: leave out what is older than the whole second in which this moment (epoch seconds) lies
    :param tail: of what is there already, the last so many lines only
    """
    first = 0 if timestamps else _STAMP
    cutoff = _cutoff(since)
    while not path.exists():
        if ended() or not follow:
            return
        await changed()
    with path.open("rb") as file:
        while True:
            # Asked before reading: what is read after the end is all there is.
            finished = ended()
            lines: Iterator[bytes] | deque[bytes] = (line for line in _lines(file) if line >= cutoff)
            if tail is not None:
                lines, tail = deque(lines, maxlen=tail), None
            chunk = bytearray()
            for line in lines:
                chunk += line[first:]
                if len(chunk) >= _CHUNK:
                    yield bytes(chunk)
                    chunk.clear()
            if chunk:
                yield bytes(chunk)
            if finished or not follow:
                return
            await changed()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The whole lines from the file's position on, which is left behind the last of them."""
    while True:
        start = file.tell()
        data = file.read(_CHUNK)
        end = data.rfind(b"\n") + 1
        file.seek(start + end)
        if not end:
            return
        for line in data[: end - 1].split(b"\n"):
            yield line + b"\n"


def _cutoff(since: float | None) -> bytes:
    if since is None:
        return b""
    return datetime.fromtimestamp(int(since), UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode()
