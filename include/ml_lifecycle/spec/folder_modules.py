"""A model folder's Python files as modules of a package of their own, made of the bytes that were digested.

Each state of each folder is a package, so that two models, or two versions of one, never share a module.
Its files import each other by a dot: ``from .network import fit``, or ``from . import codes``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_PREFIX = "ml_lifecycle_folder_"
_OF_A_FOLDER = re.compile(rf"(?P<state>{_PREFIX}.+_[0-9a-f]{{16}}_)[0-9a-f]{{8}}\.(?P<below>.+)")


@dataclass(frozen=True)
class _Package:
    """A folder's state: where it is, and its Python files by their path below it."""

    folder: Path
    sources: Mapping[str, bytes]


def import_module(folder: Path, files: Mapping[str, bytes], digest: str, stem: str) -> ModuleType:
    """The module ``stem`` of the folder in this state, run if it is asked for the first time.

    Raises what the folder's code raises. Then nothing that this call has imported is left.

    :param files: every file of the folder, by its path below it with ``/``
    :param digest: over all of them, SHA-256 in hexadecimal
    """
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()
    package = f"{_PREFIX}{folder.name.replace('.', '_')}_{digest[:16]}_{place[:8]}"
    _FINDER.packages.setdefault(
        package, _Package(folder, {name: data for name, data in files.items() if name.endswith(".py")})
    )
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    before = set(sys.modules)
    try:
        return importlib.import_module(f"{package}.{stem}")
    except BaseException:
        for name in set(sys.modules) - before:
            if name == package or name.startswith(f"{package}."):
                del sys.modules[name]
        raise


def name_here(module: str) -> str:
    """What a module of a folder is called here that lay elsewhere when something of it was pickled.

    :param module: any module's name; returned as it is unless this process knows the same files at a place
    """
    if (found := _OF_A_FOLDER.fullmatch(module)) is None:
        return module
    here = [package for package in _FINDER.packages if package.startswith(found["state"])]
    return f"{here[-1]}.{found['below']}" if here else module


class _Finder(MetaPathFinder):
    """Finds the modules of folders, and nothing else; what is imported later is of the same state."""

    def __init__(self) -> None:
        self.packages: dict[str, _Package] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name, _, below = fullname.partition(".")
        if (package := self.packages.get(name)) is None:
            return None
        stem = below.replace(".", "/")
        if (file := f"{stem}.py") in package.sources:
            return _spec(fullname, package, file, is_package=False)
        if not below or any(source.startswith(f"{stem}/") for source in package.sources):
            return _spec(fullname, package, f"{stem}/__init__.py".lstrip("/"), is_package=True)
        return None


def _spec(fullname: str, package: _Package, file: str, is_package: bool) -> ModuleSpec | None:
    place = str(package.folder / file)
    loader = _BytesLoader(package.sources.get(file, b""), place)
    spec = importlib.util.spec_from_file_location(fullname, place, loader=loader)
    if spec is not None and is_package:
        spec.submodule_search_locations = []  # nowhere: Python itself would look into the folder as it is now
    return spec


class _BytesLoader(Loader):
    """Runs the bytes that were digested; Python's cache of old bytecode is not asked."""

    def __init__(self, source: bytes, file: str) -> None:
        self._source = source
        self._file = file

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, self._file, "exec", dont_inherit=True), module.__dict__)


_FINDER = _Finder()
