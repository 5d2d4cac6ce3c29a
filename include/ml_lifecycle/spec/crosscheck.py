"""Checks that need more than one file, or more than one place, of a model folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from ml_lifecycle.spec.contract import Contract, ContractFile
from ml_lifecycle.spec.loader import Parsed
from ml_lifecycle.spec.metrics import TASK_METRICS, alert_metrics
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.problems import Problem, SourceFile, suggest
from ml_lifecycle.spec.yaml12 import Mark

# What each Python file of a folder must define; dag.py only has to compile.
REQUIRED_FUNCTIONS = {"features.py": "tables", "training.py": "train", "dag.py": None}


def check_model(model: Parsed[ModelSpec], folder_name: str, files: Mapping[str, bytes]) -> Iterator[Problem]:
    """Names that must agree with the folder and with each other."""
    spec = model.value
    if spec.name != folder_name:
        yield model.problem(
            ("name",), f"{spec.name!r} is not the folder's name, {folder_name!r}: make them the same"
        )
    if spec.training.lock is not None and spec.training.lock not in files:
        yield model.problem(("training", "lock"), f"no file {spec.training.lock!r} in the folder")
    for number, gate in enumerate(spec.evaluation.gates):
        if gate.metric not in (known := TASK_METRICS[spec.task]):
            yield model.problem(
                ("evaluation", "gates", number, "metric"),
                f"{gate.metric!r} is not a metric of {spec.task} models",
                suggest(gate.metric, known),
            )
    if (search := spec.training.search) and search.metric not in (known := TASK_METRICS[spec.task]):
        yield model.problem(
            ("training", "search", "metric"),
            f"{search.metric!r} is not a metric of {spec.task} models",
            suggest(search.metric, known),
        )
    if spec.task != "binary" and spec.evaluation.threshold != 0.5:
        yield model.problem(
            ("evaluation", "threshold"), f"only binary models decide at a threshold, this one is {spec.task}"
        )
    for number, alert in enumerate(spec.monitoring.alerts):
        if alert.metric not in (known := alert_metrics(spec.task)):
            yield model.problem(
                ("monitoring", "alerts", number, "metric"),
                f"{alert.metric!r} cannot be watched for {spec.task} models",
                suggest(alert.metric, known),
            )


def check_contracts(model: Parsed[ModelSpec], contracts: Parsed[ContractFile]) -> Iterator[Problem]:
    """Every source's contract exists and has the columns that the source names."""
    by_name = {contract.name: contract for contract in contracts.value.all}
    for name, source in model.value.sources.items():
        if source.contract is None:
            continue
        if source.contract not in by_name:
            yield model.problem(
                ("sources", name, "contract"),
                f"no contract {source.contract!r} in {contracts.source.shown}",
                suggest(source.contract, list(by_name)),
            )
        else:
            yield from _check_columns(model, name, by_name[source.contract])
            yield from _check_references(model, name, by_name[source.contract])


def check_python(source: SourceFile, data: bytes, function: str | None) -> Iterator[Problem]:
    """The file compiles and defines ``function`` at its top level."""
    try:
        tree = ast.parse(data, source.shown)
    except SyntaxError as error:
        yield source.problem(Mark(error.lineno or 1, error.offset or 1), f"not Python: {error.msg}")
        return
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply
        yield source.problem(Mark(1, 1), f"not Python: {error}")
        return
    names = list(_defined(tree))
    if function is not None and function not in names:
        hints = suggest(function, names)[:-1]
        yield source.problem(Mark(1, 1), f"does not define {function}(): see the template's", hints)


def _check_columns(model: Parsed[ModelSpec], name: str, contract: Contract) -> Iterator[Problem]:
    source = model.value.sources[name]
    columns = [field.name for field in contract.fields]
    named = [
        (("event_time",), source.event_time),
        (("known_at",), source.known_at),
        *((("keys", number), key) for number, key in enumerate(source.keys)),
    ]
    for path, column in named:
        if column is not None and column not in columns:
            yield model.problem(
                ("sources", name, *path),
                f"contract {contract.name!r} has no field {column!r}",
                suggest(column, columns),
            )


def _check_references(model: Parsed[ModelSpec], name: str, contract: Contract) -> Iterator[Problem]:
    """Whatever the contract refers to, a source of the model has."""
    had = {source.contract for source in model.value.sources.values()}
    for item in contract.fields:
        if item.references is not None and item.references.contract not in had:
            yield model.problem(
                ("sources", name, "contract"),
                f"{contract.name}.{item.name} refers to {item.references.words}, and no source has "
                f"contract {item.references.contract!r}",
            )


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
