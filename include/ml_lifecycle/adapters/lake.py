"""The lake: immutable files under one fsspec URL, plus a few pointers that are swapped atomically.

On a local folder a write goes to a temporary name beside its target, is fsynced and renamed; on object
stores a put is atomic by itself. Readers never see half a file.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ml_lifecycle.adapters.local_files import PIECE, create_file, no_room_said, replace_file, replacing
from ml_lifecycle.errors import IntegrityError, LifecycleError, ServerUnavailableError, UnsafeNameError

if TYPE_CHECKING:
    import polars as pl

# A folder where a file should be, or a file where a folder should be, is a missing file too.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
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


def json_bytes(value: Any) -> bytes:
    """``value`` as readable JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()


def file_sha256(local: str | os.PathLike[str]) -> str:
    """A local file's lower-case hex digest; reads it piece by piece, however large it is."""
    with open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Lake:
    """Files under one fsspec URL.

    :param url: a folder or any fsspec URL, e.g. ``/data/lake`` or ``s3://bucket/prefix``
    :param storage_options: passed to the filesystem: credentials, endpoint
    :raises UnsafeNameError: the URL names no place: it would mean the working folder or a whole store.
        Retry: no.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        if not url.split("://", 1)[-1].strip("/"):
            raise UnsafeNameError(f"{url!r} is no lake: give a folder, or a URL such as s3://bucket/prefix")
        self.storage_options = dict(storage_options or {})
        # Others write here too: a remembered listing would hide their files.
        options = {"use_listings_cache": False, **self.storage_options}
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except (ValueError, ImportError) as error:  # no such protocol; its package is not installed
            raise UnsafeNameError(f"{url!r} is no lake: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        if self._local:
            self.url = self._root  # absolute: other processes have other working folders

    def __repr__(self) -> str:
        return f"Lake({self.url!r})"

    def full_path(self, path: str) -> str:
        """The path as the filesystem knows it; ``path`` is checked segment by segment.

        :raises UnsafeNameError: a segment is unsafe. Retry: no.
        """
        return "/".join([self._root, *(safe_name(part) for part in path.split("/"))])

    def uri(self, path: str) -> str:
        """The URL of ``path``, for other tools; checked like :meth:`full_path`."""
        return "/".join([self.url, *(safe_name(part) for part in path.split("/"))])

    @property
    def local_root(self) -> str | None:
        """The folder, when the lake is one; None on object stores."""
        return self._root if self._local else None

    @property
    def root(self) -> str:
        """The lake's root as the filesystem knows it."""
        return cast("str", self._root)

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem, for libraries that read through one."""
        return self._fs

    def exists(self, path: str) -> bool:
        """Whether the file is there, whole. A folder is no file.

        :raises OSError: the store did not answer, or does not let us see: fsspec's own ``isfile`` says of
            such a file that it is not there, and it would be made anew. Retry: yes.
        """
        try:
            return bool(self._fs.info(self.full_path(path))["type"] == "file")
        except _MISSING:
            return False

    def read_bytes(self, path: str, digest: str | None = None) -> bytes:
        """The file's bytes.

        :param digest: if given, the SHA-256 they must have
        :raises LakeFileMissingError: there is no such file. Retry: no.
        :raises IntegrityError: they have another digest. Retry: no.
        """
        try:
            data = cast("bytes", self._fs.cat_file(self.full_path(path)))
        except _MISSING as error:
            raise LakeFileMissingError(f"no file {path!r} in {self.url}") from error
        if digest is not None and (actual := sha256(data)) != digest:
            raise IntegrityError(f"{self.uri(path)} has digest {actual}, expected {digest}")
        return data

    def read_all(self, paths: Sequence[str]) -> list[bytes]:
        """The bytes of several files; an object store is asked for many at a time.

        :raises LakeFileMissingError: one is not there. Retry: no.
        """
        if self._local:
            return [self.read_bytes(path) for path in paths]
        full = [self.full_path(path) for path in paths]
        try:
            found = self._fs.cat(full) if full else {}
        except _MISSING as error:
            raise LakeFileMissingError(f"no file {error} in {self.url}") from error
        return [cast("bytes", found[path]) for path in full]

    def read_json(self, path: str) -> Any:
        """The file parsed as JSON.

        :raises LakeFileMissingError: there is no such file. Retry: no.
        :raises IntegrityError: it is not JSON. Retry: no.
        """
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise IntegrityError(f"{self.uri(path)} is not JSON: {error}") from error

    def write_bytes(self, path: str, data: bytes) -> str:
        """Write atomically, replacing what is there; returns ``path``.

        :raises NoSpaceError: the disk is full; what was there still is. Retry: yes, when there is room.
        """
        full = self.full_path(path)
        if self._local:
            replace_file(full, io.BytesIO(data))
        else:
            self._fs.pipe_file(full, data)
        return path

    def write_json(self, path: str, value: Any) -> str:
        """Write ``value`` as readable JSON with sorted keys; returns ``path``."""
        return self.write_bytes(path, json_bytes(value))

    def create_json(self, path: str, value: Any) -> bool:
        """Write ``value`` where nothing is yet; of several who do so at once one gets True, and stays.

        Stores that cannot put on that condition (of S3's kin most can) look first, and then put.

        :raises NoSpaceError: the disk is full. Retry: yes, when there is room.
        """
        full, data = self.full_path(path), json_bytes(value)
        if self._local:
            return create_file(full, data)
        try:
            self._fs.pipe_file(full, data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_file(self, path: str, local: str | os.PathLike[str]) -> str:
        """Copy a local file in atomically; returns ``path``. Errors as in :meth:`write_bytes`."""
        full = self.full_path(path)
        if self._local:
            with open(local, "rb") as file:
                replace_file(full, file)
        else:
            self._fs.put_file(os.fspath(local), full)
        return path

    @contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """A file to write piece by piece. It is there, whole, when the block has ended; never if it raised.

        :raises NoSpaceError: the disk is full; what was there still is. Retry: yes, when there is room.
        """
        full = self.full_path(path)
        if self._local:
            with replacing(full) as file:
                yield file
            return
        # A store's own file would be closed, and thereby be there, after an error as well.
        with tempfile.NamedTemporaryFile(prefix="lake-") as spooled:
            with no_room_said(spooled.name):
                yield cast("BinaryIO", spooled)
                spooled.flush()
            self._fs.put_file(spooled.name, full)

    def digest(self, path: str) -> str:
        """SHA-256 of the file's bytes, read piece by piece.

        :raises LakeFileMissingError: there is no such file. Retry: no.
        """
        if self._local:
            try:
                return file_sha256(self.full_path(path))
            except _MISSING as error:
                raise LakeFileMissingError(f"no file {path!r} in {self.url}") from error
        hashed = hashlib.sha256()
        with self.open(path) as source:
            while piece := source.read(PIECE):
                hashed.update(piece)
        return hashed.hexdigest()

    def get_file(self, path: str, local: str | os.PathLike[str], digest: str) -> None:
        """Copy a file out to a local one, piece by piece; what is there is overwritten.

        :param digest: the SHA-256 that the bytes must have
        :raises LakeFileMissingError: there is no such file. Retry: no.
        :raises IntegrityError: they have another digest. Retry: no.
        :raises NoSpaceError: the local disk is full. Retry: yes, when there is room.
        """
        hashed = hashlib.sha256()
        with self.open(path) as source, no_room_said(local), open(local, "wb") as target:
            while piece := source.read(PIECE):
                hashed.update(piece)
                target.write(piece)
        if (actual := hashed.hexdigest()) != digest:
            raise IntegrityError(f"{self.uri(path)} has digest {actual}, expected {digest}")

    def open(self, path: str) -> BinaryIO:
        """Open for reading, seekable.

        :raises LakeFileMissingError: there is no such file. Retry: no.
        """
        try:
            file = self._fs.open(self.full_path(path), "rb")
        except _MISSING as error:
            raise LakeFileMissingError(f"no file {path!r} in {self.url}") from error
        # What is only the beginning of other names, s3fs opens as well; the first read would fail.
        if getattr(file, "details", {}).get("type") == "directory":
            raise LakeFileMissingError(f"no file {path!r} in {self.url}")
        return cast("BinaryIO", file)

    def list(self, prefix: str) -> Iterator[str]:
        """Relative paths of the files below ``prefix``, sorted, temporary ones left out; never cached."""
        root = self.full_path(prefix)
        self._fs.invalidate_cache(root)
        for found in sorted(self._fs.find(root) if self._fs.exists(root) else []):
            name = str(found)
            if not os.path.basename(name).startswith("."):
                yield name[len(self._root) + 1 :]

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders directly below ``prefix``, sorted; never from a listing cache."""
        root = self.full_path(prefix)
        self._fs.invalidate_cache(root)
        try:
            found = self._fs.ls(root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(os.path.basename(entry["name"]) for entry in found if entry["type"] == "directory")

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

    def modified(self, path: str) -> datetime:
        """When the file was written, by the store's clock, in UTC.

        :raises LakeFileMissingError: there is no such file. Retry: no.
        """
        try:
            moment = cast("datetime", self._fs.modified(self.full_path(path)))
        except _MISSING as error:
            raise LakeFileMissingError(f"no file {path!r} in {self.url}") from error
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def scan(self, paths: Sequence[str], *, whole: bool = False) -> pl.LazyFrame:
        """Parquet files, one or more, as one lazy frame; on a local folder only what is used is read.

        :param whole: from an object store their bytes are fetched at once, as suits many small ones
        """
        import polars as pl  # the model server has a lake and no use for data frames

        if self._local:
            return pl.scan_parquet(
                [self.full_path(path) for path in paths], glob=False, hive_partitioning=False
            )
        if whole:
            return pl.scan_parquet(self.read_all(paths))
        return pl.scan_parquet([cast("IO[bytes]", self.open(path)) for path in paths])

    def delete(self, path: str) -> None:
        """Remove the file; missing is fine."""
        try:
            self._fs.rm_file(self.full_path(path))
        except _MISSING:
            return

    def delete_all(self, paths: Sequence[str]) -> None:
        """Remove files, of which one may be missing; an object store is told of a thousand at a time.

        :raises PermissionError: the store does not let us. Retry: no.
        """
        if self._local:
            for path in paths:
                self.delete(path)
        elif paths:
            self._fs.rm([self.full_path(path) for path in paths])
            if self.exists(paths[0]):  # s3fs says nothing of files that S3 refuses to delete
                raise PermissionError(f"{self.uri(paths[0])} cannot be deleted")

    def sweep(self, prefix: str) -> None:
        """Remove what writers that were killed left half-written below ``prefix``.

        Only where nobody else is writing: one who is would find its work gone. Object stores drop an
        unfinished upload themselves.
        """
        root = self.full_path(prefix)
        if self._local:
            for temporary in glob.iglob(f"{glob.escape(root)}/**/.*.tmp", recursive=True):
                with suppress(FileNotFoundError):
                    os.unlink(temporary)


@contextmanager
def outage_said() -> Iterator[None]:
    """For who goes on once a lake answers again; what is missing or not permitted is no outage.

    :raises ServerUnavailableError: a lake that is used within did not answer. Retry: yes.
    """
    try:
        yield
    except (*_MISSING, PermissionError):
        raise
    except _outages() as error:
        raise ServerUnavailableError(f"a lake does not answer: {type(error).__name__}: {error}") from error


def _outages() -> tuple[type[Exception], ...]:
    # s3fs lets these two through as they are; where they can be raised, botocore is loaded.
    aws = sys.modules.get("botocore.exceptions")
    return (OSError,) if aws is None else (OSError, aws.ConnectionError, aws.HTTPClientError)
