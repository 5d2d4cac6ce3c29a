"""Local files that are there whole or not at all, and on the disk before anybody sees them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ml_lifecycle.errors import NoSpaceError

PIECE = 2**20
# EFBIG: a limit on the size of files, as ulimit -f sets one.
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

_NUMBER_IN_WORDS = re.compile(r"\(os error (\d+)\)")


@contextmanager
def no_room_said(target: str | os.PathLike[str]) -> Iterator[None]:
    """:raises NoSpaceError: what is written within found the disk full. Retry: yes, when there is room."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in _NO_ROOM:
            raise
        raise NoSpaceError(
            f"no room for {os.fspath(target)}: {os.strerror(number)}. "
            "Nothing was changed; make room, then try again"
        ) from error


def _errno(error: Exception) -> int:
    """An error's number, 0 if it has none; Polars' tell it in words, whatever their type."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    said = _NUMBER_IN_WORDS.search(str(error))
    return int(said[1]) if said is not None else 0


def replace_file(full: str, content: BinaryIO) -> None:
    """Put ``content`` where ``full`` is, all of it or nothing, and on the disk before it is seen."""
    with replacing(full) as file:
        shutil.copyfileobj(content, file, PIECE)


@contextmanager
def replacing(full: str) -> Iterator[BinaryIO]:
    """A file that is where ``full`` is once the block has ended, and on the disk before it is seen."""
    with _beside(full) as file:
        yield file
        _on_disk(file)
        os.replace(file.name, full)


@contextmanager
def _beside(full: str) -> Iterator[BinaryIO]:
    """A temporary file in the folder of ``full``, gone after the block; the folder then is on the disk."""
    parent = os.path.dirname(full)
    temporary = f"{parent}/.{uuid.uuid4().hex}.tmp"
    try:
        with no_room_said(full):
            os.makedirs(parent, exist_ok=True)
            with open(temporary, "xb") as file:
                yield file
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    directory = os.open(parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def create_file(full: str, content: bytes) -> bool:
    """Put ``content`` where nothing is yet; whether this call did. Of several at once one does."""
    with _beside(full) as file:
        file.write(content)
        _on_disk(file)
        try:
            os.link(file.name, full)
        except FileExistsError:
            return False
    return True


def _on_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
