"""A model folder in the lake, packed: what training pods and Spark applications run."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.folder import ModelFolder, load_folder, pack_folder


def package_path(folder: ModelFolder) -> str:
    """Where the folder's package lies, by its digest."""
    return _path(folder.code_digest)


def keep_package(folder: ModelFolder, lake: Lake) -> None:
    """Pack the folder into the lake, unless it is there.

    :raises SpecError: the folder changed since it was loaded. Retry: no.
    """
    path = package_path(folder)
    if lake.exists(path):
        return
    package = pack_folder(folder.path)
    if sha256(package) != folder.code_digest:
        raise SpecError(f"{folder.path} changed while the run was using it")
    lake.write_bytes(path, package)


def unpack(lake: Lake, path: str, digest: str, folder: Path) -> None:
    """Unpack a package whose bytes have this digest.

    :raises IntegrityError: they have another one. Retry: no.
    """
    with zipfile.ZipFile(io.BytesIO(lake.read_bytes(path, digest))) as archive:
        archive.extractall(folder)


def kept_folder(lake: Lake, model: str, code_digest: str, into: Path) -> ModelFolder:
    """A model's folder as it was when it had this digest.

    :param into: an empty folder, to unpack it in
    :raises LakeFileMissingError: its package is not in the lake. Retry: no.
    :raises IntegrityError: the package has another digest. Retry: no.
    :raises SpecError: by today's rules it is no model folder any more. Retry: no.
    """
    folder = into / model  # a folder is called as its model is
    unpack(lake, _path(code_digest), code_digest, folder)
    return load_folder(folder)


def _path(code_digest: str) -> str:
    return f"code/{code_digest}.zip"
