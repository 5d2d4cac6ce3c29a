"""Reads ``model.yaml`` and ``contract.yaml``, and reports every mistake in them at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.contract import Contract, ContractFile
from ml_lifecycle.spec.explain import explain, show_path
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.problems import Problem, SourceFile, spec_error
from ml_lifecycle.spec.types import Strict
from ml_lifecycle.spec.yaml12 import Document, Path, YamlProblem, decode, parse

S = TypeVar("S", bound=Strict)


@dataclass(frozen=True)
class Parsed(Generic[S]):
    """A spec with the file it came from, so that later checks can still point into it."""

    value: S
    document: Document
    source: SourceFile

    def problem(self, path: Path, message: str, hints: Iterable[str] = ()) -> Problem:
        """A problem with the value at ``path``."""
        return self.source.problem(self.document.value_mark(path), f"{show_path(path)}: {message}", hints)


def read_spec(cls: type[S], data: bytes, shown: str) -> tuple[Parsed[S] | None, list[Problem]]:
    """The spec, or what is wrong with it, in the file's order.

    :param shown: the path to name in problems
    """
    source = SourceFile(shown, data.decode("utf-8-sig", errors="replace"))
    try:
        document = parse(decode(data))
    except YamlProblem as problem:
        return None, [source.problem(problem.mark, problem.message)]
    if document.problems:
        return None, [source.problem(problem.mark, problem.message) for problem in document.problems]
    value, errors = _validate(cls, document)
    if value is None:
        problems = sorted(explain(errors, cls, document, source), key=lambda p: (p.line, p.column))
        return None, problems
    return Parsed(value, document, source), []


def load_model(path: FilePath) -> ModelSpec:
    """Read one ``model.yaml``, without the folder around it.

    :raises SpecError: it is missing or malformed; the text names every mistake. Retry: no.
    """
    return _load(ModelSpec, path)


def load_contracts(path: FilePath) -> dict[str, Contract]:
    """Read one ``contract.yaml``: its contracts by name.

    :raises SpecError: it is missing or malformed; the text names every mistake. Retry: no.
    """
    return {contract.name: contract for contract in _load(ContractFile, path).all}


def _load(cls: type[S], path: FilePath) -> S:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    parsed, problems = read_spec(cls, data, str(path))
    if parsed is None:
        raise spec_error(problems)
    return parsed.value


def _validate(cls: type[S], document: Document) -> tuple[S | None, list[Any]]:
    """Validate as strictly as JSON: no text becomes a number, a moment or a truth value by itself.

    The other way is meant: a number where text belongs is taken as it was written.
    """
    try:
        return cls.model_validate_json(json.dumps(document.data), strict=True), []
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    as_written = [
        tuple(e["loc"]) for e in errors if e["type"] == "string_type" and tuple(e["loc"]) in document.written
    ]
    if not as_written:
        return None, errors
    for path in as_written:
        _put(document.data, path, document.written[path])
    return _validate(cls, document)


def _put(data: Any, path: Path, value: str) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value
