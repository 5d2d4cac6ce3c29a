"""A model folder as one value: its spec, its contracts, and digests over what it says and what it runs."""

from __future__ import annotations

import io
import os
import stat
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ml_lifecycle.adapters.lake import sha256
from ml_lifecycle.errors import SpecError
from ml_lifecycle.records import digest_of
from ml_lifecycle.spec.contract import Contract, ContractFile
from ml_lifecycle.spec.crosscheck import REQUIRED_FUNCTIONS, check_contracts, check_model, check_python
from ml_lifecycle.spec.folder_modules import import_module
from ml_lifecycle.spec.loader import Parsed, read_spec
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.problems import Problem, SourceFile, spec_error

MAX_FILE_BYTES = 5 * 2**20
MAX_FOLDER_BYTES = 20 * 2**20
MAX_FILES = 500

_REQUIRED_FILES = {
    "model.yaml": "the spec",
    "contract.yaml": "what the sources must look like",
    "features.py": "Feast objects and tables(sources)",
    "training.py": "train(training_set, labels, parameters, seed)",
    "dag.py": "the three lines that make the model's DAGs",
}


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that passed every check.

    :param contracts: by name
    :param contract_file: the file that they stand in
    :param spec_digest: of what ``model.yaml`` means, whatever its comments and formatting
    :param code_digest: of :func:`pack_folder`'s bytes
    """

    path: Path
    spec: ModelSpec
    contracts: dict[str, Contract]
    contract_file: Parsed[ContractFile]
    spec_digest: str
    code_digest: str


@dataclass(frozen=True)
class FolderReading:
    """What a model folder's files say, right or wrong.

    :param files: content by path below the folder
    :param model: None if ``model.yaml`` is missing or malformed
    :param contracts: None if ``contract.yaml`` is
    """

    path: Path
    files: dict[str, bytes]
    model: Parsed[ModelSpec] | None
    contracts: Parsed[ContractFile] | None
    problems: tuple[Problem, ...]


def read_folder(path: str | os.PathLike[str]) -> FolderReading:
    """Read and check a model folder's files. Runs none of its code.

    :raises SpecError: there is no such folder, or it holds what no folder may. Retry: no.
    """
    folder = Path(path)
    files = _read_files(folder)
    problems = [
        Problem(f"{folder / name}: missing file: it holds {what}")
        for name, what in _REQUIRED_FILES.items()
        if name not in files
    ]
    model, contracts = _read_specs(folder, files, problems)
    if model is not None:
        problems += check_model(model, Path(os.path.abspath(folder)).name, files)
    if model is not None and contracts is not None:
        problems += check_contracts(model, contracts)
    for name, function in REQUIRED_FUNCTIONS.items():
        if (data := files.get(name)) is not None:
            problems += check_python(_source(folder / name, data), data, function)
    return FolderReading(folder, files, model, contracts, tuple(problems))


def load_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """Load and check a model folder. Runs none of its code.

    :raises SpecError: something in it is malformed or missing; the text names every mistake. Retry: no.
    """
    reading = read_folder(path)
    model, contracts = reading.model, reading.contracts
    if reading.problems or model is None or contracts is None:
        raise spec_error(reading.problems)
    return ModelFolder(
        path=reading.path,
        spec=model.value,
        contracts={contract.name: contract for contract in contracts.value.all},
        contract_file=contracts,
        spec_digest=digest_of(model.value.model_dump(mode="json")),
        code_digest=sha256(_pack(reading.files)),
    )


def pack_folder(path: str | os.PathLike[str]) -> bytes:
    """The folder as a zip whose bytes depend on names and contents alone, on every machine.

    Left out: ``__pycache__`` and whatever starts with a dot.

    :raises SpecError: a link leads out of the folder, or a file is too large. Retry: no.
    """
    return _pack(_read_files(Path(path)))


def load_module(folder_path: str | os.PathLike[str], stem: str) -> ModuleType:
    """Run ``features.py`` or ``training.py`` of a folder, once for each state of the folder.

    It may import the folder's other files, by a dot. The modules' names hold the folder's digest and place,
    so that two models, or two versions of one, never share a module.

    :param stem: ``features`` or ``training``
    :raises SpecError: the file is missing, or raised while it was imported. Retry: no.
    """
    folder = Path(os.path.abspath(folder_path))
    files = _read_files(folder)
    file = folder / f"{stem}.py"
    if file.name not in files:
        raise SpecError(f"{file}: missing file")
    try:
        return import_module(folder, files, sha256(_pack(files)), stem)
    except Exception as error:
        # Whatever the user's code raises is the folder's fault, and is shown with its place in the file.
        place = f"{error_place(error, file)}: {type(error).__name__}: {error}"
        raise SpecError(f"{place}{_how_to_import(error, files)}") from error


def _how_to_import(error: Exception, files: Mapping[str, bytes]) -> str:
    """A hint for who imports a file of the folder as if it lay on Python's path."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is None or f"{name.replace('.', '/')}.py" not in files:
        return ""
    return f" (a file of the same folder is imported by a dot: from .{name} import …)"


def _read_specs(
    folder: Path, files: dict[str, bytes], problems: list[Problem]
) -> tuple[Parsed[ModelSpec] | None, Parsed[ContractFile] | None]:
    model: Parsed[ModelSpec] | None = None
    contracts: Parsed[ContractFile] | None = None
    if "model.yaml" in files:
        model, found = read_spec(ModelSpec, files["model.yaml"], str(folder / "model.yaml"))
        problems += found
    if "contract.yaml" in files:
        contracts, found = read_spec(ContractFile, files["contract.yaml"], str(folder / "contract.yaml"))
        problems += found
    return model, contracts


def _source(path: Path, data: bytes) -> SourceFile:
    return SourceFile(str(path), data.decode("utf-8", errors="replace"))


def _read_files(folder: Path) -> dict[str, bytes]:
    """Every file that counts, by its path below ``folder`` with ``/``, sorted."""
    if not folder.is_dir():
        raise SpecError(f"{folder}: no such folder")
    files: dict[str, bytes] = {}
    total = 0
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():
            raise SpecError(f"{folder}: file name {name!r} has unprintable characters: rename it")
        data = _read_file(path, folder)
        total += len(data)
        files[name] = data
        if len(files) > MAX_FILES or total > MAX_FOLDER_BYTES:
            raise SpecError(
                f"{folder}: more than {MAX_FILES} files or {MAX_FOLDER_BYTES >> 20} MiB: "
                "data belongs into the lake, not in a model folder"
            )
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise SpecError(f"{path}: a link to a folder: copy the folder here instead")
        else:
            yield from _walk(path)


def _read_file(path: Path, folder: Path) -> bytes:
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(folder.resolve()):
            raise SpecError(f"{path}: a link that leads out of the folder: copy the file here instead")
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SpecError(f"{path}: not a plain file: remove it")
        if status.st_size > MAX_FILE_BYTES:
            raise SpecError(
                f"{path}: {status.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed: "
                "data belongs into the lake, not in a model folder"
            )
        return real.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise SpecError(f"{path}: cannot be read: {error}") from error


def _pack(files: dict[str, bytes]) -> bytes:
    """Stored, not compressed: zlib's output differs between its versions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def error_place(error: Exception, file: Path) -> str:
    """Where in its folder an error was: the innermost line in ``file`` or a file beside it."""
    folder = f"{os.path.abspath(file.parent)}/"
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames if frame.filename.startswith(folder)]
    if isinstance(error, SyntaxError) and (error.filename or "").startswith(folder):
        places.append((str(error.filename), error.lineno))
    if not places:
        return str(file)
    name, line = places[-1]
    return f"{file.parent / name.removeprefix(folder)}:{line}"
