"""The lake: immutable files under one fsspec URL, plus a few pointers that are swapped atomically.

On a local folder a write goes to a temporary name beside its target, is fsynced and renamed; on object
stores a put is atomic by itself. Readers never see half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO, cast

import fsspec
import polars as pl
from fsspec.implementations.local import LocalFileSystem

from ml_lifecycle.errors import IntegrityError, LifecycleError, UnsafeNameError

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,199}")


class LakeFileMissingError(LifecycleError):
    """The lake has no such file. Retry: no; an unreachable lake raises its own OSError instead."""


def safe_name(name: str) -> str:
    """``name`` unchanged if it may become one path segment.

    :raises UnsafeNameError: it has separators, dots only, control characters or is too long. Retry: no.
    """
    if not _SAFE_NAME.fullmatch(name) or ".." in name:
        raise UnsafeNameError(
            f"{name!r} cannot be a path segment: use letters, digits, '_', '-', '.' or '=', "
            "start with a letter or digit, at most 200 characters"
        )
    return name


def sha256(data: bytes) -> str:
    """Lower-case hex digest."""
    return hashlib.sha256(data).hexdigest()


class Lake:
    """Files under one fsspec URL.

    :param url: a folder or any fsspec URL, e.g. ``/data/lake`` or ``s3://bucket/prefix``
    :param storage_options: passed to the filesystem: credentials, endpoint
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.storage_options = dict(storage_options or {})
        self._fs, self._root = fsspec.core.url_to_fs(self.url, **self.storage_options)
        self._local = isinstance(self._fs, LocalFileSystem)

    def __repr__(self) -> str:
        return f"Lake({self.url!r})"

    def full_path(self, path: str) -> str:
        """The path as the filesystem knows it; ``path`` is checked segment by segment.

        :raises UnsafeNameError: a segment is unsafe. Retry: no.
        """
        return "/".join([self._root, *(safe_name(part) for part in path.split("/"))])

    def uri(self, path: str) -> str:
        """The URL of ``path``, for other tools."""
        return f"{self.url}/{path}"

    @property
    def local_root(self) -> str | None:
        """The folder, when the lake is one; None on object stores."""
        return self._root if self._local else None

    def exists(self, path: str) -> bool:
        """Whether the file is there, whole."""
        return bool(self._fs.exists(self.full_path(path)))

    def read_bytes(self, path: str, digest: str | None = None) -> bytes:
        """The file's bytes.

        :param digest: if given, the SHA-256 they must have
        :raises LakeFileMissingError: there is no such file. Retry: no.
        :raises IntegrityError: they have another digest. Retry: no.
        """
        try:
            data = cast("bytes", self._fs.cat_file(self.full_path(path)))
        except FileNotFoundError as error:
            raise LakeFileMissingError(f"no file {path!r} in {self.url}") from error
        if digest is not None and (actual := sha256(data)) != digest:
            raise IntegrityError(f"{self.uri(path)} has digest {actual}, expected {digest}")
        return data

    def read_json(self, path: str) -> Any:
        """The file parsed as JSON."""
        return json.loads(self.read_bytes(path))

    def write_bytes(self, path: str, data: bytes) -> str:
        """Write atomically, replacing what is there; returns ``path``."""
        full = self.full_path(path)
        if not self._local:
            self._fs.pipe_file(full, data)
            return path
        parent = os.path.dirname(full)
        os.makedirs(parent, exist_ok=True)
        temporary = f"{parent}/.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, full)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        directory = os.open(parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return path

    def write_json(self, path: str, value: Any) -> str:
        """Write ``value`` as readable JSON with sorted keys; returns ``path``."""
        text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return self.write_bytes(path, text.encode())

    def put_file(self, path: str, local: str | os.PathLike[str]) -> str:
        """Copy a local file in atomically; returns ``path``."""
        full = self.full_path(path)
        if not self._local:
            self._fs.put_file(os.fspath(local), full)
            return path
        with open(local, "rb") as file:
            return self.write_bytes(path, file.read())

    def open(self, path: str) -> BinaryIO:
        """Open for reading, seekable.

        :raises LakeFileMissingError: there is no such file. Retry: no.
        """
        try:
            return cast("BinaryIO", self._fs.open(self.full_path(path), "rb"))
        except FileNotFoundError as error:
            raise LakeFileMissingError(f"no file {path!r} in {self.url}") from error

    def list(self, prefix: str) -> Iterator[str]:
        """Relative paths of the files below ``prefix``, sorted, temporary ones left out."""
        root = self.full_path(prefix)
        for found in sorted(self._fs.find(root) if self._fs.exists(root) else []):
            name = str(found)
            if not os.path.basename(name).startswith("."):
                yield name[len(self._root) + 1 :]

    def sizes(self, prefix: str) -> dict[str, int]:
        """Sizes in bytes of the files below ``prefix`` by relative path, sorted, temporary ones left out."""
        root = self.full_path(prefix)
        self._fs.invalidate_cache(root)  # other processes write here
        found = self._fs.find(root, detail=True) if self._fs.exists(root) else {}
        return {
            str(name)[len(self._root) + 1 :]: int(entry["size"])
            for name, entry in sorted(found.items())
            if not os.path.basename(name).startswith(".")
        }

    def scan(self, paths: Sequence[str]) -> pl.LazyFrame:
        """Parquet files, one or more, as one lazy frame; on a local folder only what is used is read."""
        if self._local:
            return pl.scan_parquet(
                [self.full_path(path) for path in paths], glob=False, hive_partitioning=False
            )
        return pl.scan_parquet([cast("IO[bytes]", self.open(path)) for path in paths])

    def delete(self, path: str) -> None:
        """Remove the file; missing is fine."""
        try:
            self._fs.rm_file(self.full_path(path))
        except FileNotFoundError:
            return
